"""Hugging Face causal language models as hosts; transformers itself is never imported."""

from dro_temp.hosts.causal_lm.head import LmHead
from dro_temp.hosts.causal_lm.host import CausalLM

__all__ = ["CausalLM", "LmHead"]
