"""Host adapters: the user's own model, seen as rows of scores."""

from dro_temp.hosts.causal_lm import CausalLM, LmHead
from dro_temp.hosts.classifier import Classifier
from dro_temp.hosts.two_tower import TwoTower

__all__ = ["CausalLM", "Classifier", "LmHead", "TwoTower"]
