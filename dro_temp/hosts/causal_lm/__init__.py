"""Hugging Face causal language models as hosts; transformers itself is never imported."""

from dro_temp.hosts.causal_lm.adapter import CausalLM
from dro_temp.hosts.causal_lm.model_head import ModelHead

__all__ = ["CausalLM", "ModelHead"]
