"""Host adapters: the user's own model, seen as rows of scores."""

from dro_temp.hosts._modules import freeze_unused
from dro_temp.hosts.around_hosts import InChunks, WithReference
from dro_temp.hosts.causal_lm import CausalLM
from dro_temp.hosts.classifier import Classifier, Timm
from dro_temp.hosts.dual_encoders import HFDualEncoder, OpenCLIP
from dro_temp.hosts.labels import labelled_rows
from dro_temp.hosts.model_head import ModelHead
from dro_temp.hosts.pairs import SentenceTransformers, TwoTower, TwoViews, pair_rows

__all__ = [
    "CausalLM",
    "Classifier",
    "HFDualEncoder",
    "InChunks",
    "ModelHead",
    "OpenCLIP",
    "SentenceTransformers",
    "Timm",
    "TwoTower",
    "TwoViews",
    "WithReference",
    "freeze_unused",
    "labelled_rows",
    "pair_rows",
]
