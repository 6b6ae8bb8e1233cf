"""Host adapters: the user's own model, seen as rows of scores."""

from dro_temp.hosts.causal_lm import CausalLM, ModelHead
from dro_temp.hosts.classifier import Classifier
from dro_temp.hosts.hf_dual_encoder import HFDualEncoder
from dro_temp.hosts.in_chunks import InChunks
from dro_temp.hosts.labels import labelled_rows
from dro_temp.hosts.open_clip import OpenCLIP
from dro_temp.hosts.pairs import TwoTower, TwoViews, pair_rows
from dro_temp.hosts.sentence_transformers import SentenceTransformers
from dro_temp.hosts.timm import Timm
from dro_temp.hosts.unused import freeze_unused
from dro_temp.hosts.with_reference import WithReference

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
