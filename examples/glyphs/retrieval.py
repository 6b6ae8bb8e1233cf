"""Retrieval of names by images, and of images by names."""

import torch
from torch import Tensor

import dro_temp as dt
from dro_temp.evaluation import retrieval_recall

from .data import Pairs
from .model import as_float


@torch.no_grad()
def embed(host: dt.hosts.TwoTower, pairs: Pairs) -> dict[str, Tensor]:
    """Unit vectors of the images, and of the names, in host memory."""
    device = next(host.parameters()).device
    images, tokens = (x.to(device).split(512) for x in (pairs.images, pairs.tokens))
    return {
        "image": torch.cat([host.encode_image(as_float(x)) for x in images]).cpu(),
        "text": torch.cat([host.encode_text(x) for x in tokens]).cpu(),
    }


def recalls(host: dt.hosts.TwoTower, pairs: Pairs, split: str) -> dict[str, float]:
    """R@1 and R@5 in percent: of an image's name among all names, and of any image of a name."""
    side = embed(host, pairs)
    names = torch.arange(len(pairs.names))
    by_way = {
        "i2t": retrieval_recall(side["image"], side["text"], pairs.name_index, names, ks=(1, 5)),
        "t2i": retrieval_recall(side["text"], side["image"], names, pairs.name_index, ks=(1, 5)),
    }
    return {f"{split}/{way}_r{k}": float(r) for way, by_k in by_way.items() for k, r in by_k.items()}


def mean_r1(recalls: dict[str, float]) -> float:
    """Mean of the four R@1: two splits, both ways."""
    r1 = [value for name, value in recalls.items() if name.endswith("_r1")]
    return sum(r1) / len(r1)
