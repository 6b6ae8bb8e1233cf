"""What a model of images and texts is measured by: retrieval, zero-shot classification, temperatures."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dro_temp.cli.clip.data import Classes, same_meaning
from dro_temp.cli.clip.models import Clip
from dro_temp.cli.images import Labelled
from dro_temp.cli.loader import Transformed, in_order
from dro_temp.cli.training import Validation
from dro_temp.evaluation import evaluate_zero_shot, retrieval_recall
from dro_temp.hosts import OpenCLIP
from dro_temp.objective import Objective

_KS = (1, 5, 10)
_MOST = 2000  # temperatures of a table that are recorded


@dataclass(frozen=True)
class Embedded:
    """Different images and captions of some samples.

    Args:
        places: one sample of each image.
        captions: the texts.
        vectors: unit vectors [n d] by view.
        label: of each image and each caption, by view: equal where they mean the same.
    """

    places: list[int]
    captions: list[str]
    vectors: dict[str, Tensor]
    label: dict[str, Tensor]

    def recalls(self) -> dict[str, float]:
        """R@1, R@5 and R@10 in percent, from images to texts and back."""
        sides = (("i2t", "image", "text"), ("t2i", "text", "image"))
        return {
            f"{way}_r{k}": value
            for way, one, other in sides
            for k, value in retrieval_recall(
                self.vectors[one], self.vectors[other], self.label[one], self.label[other], _KS
            ).items()
        }


@torch.no_grad()
def embedded(
    clip: Clip, host: OpenCLIP, samples: Labelled, *, batch: int = 256, workers: int = 0
) -> Embedded:
    """Vectors of the samples' images and captions, in evaluation mode."""
    places, captions, of_image, of_caption = same_meaning(samples)
    data = Transformed(samples.part(places), clip.transform, lambda caption: 0)
    device = next(host.parameters()).device
    images = [host.encode_image(part.to(device)).cpu() for part, _, _ in in_order(data, batch, workers)]
    texts = [
        host.encode_text(clip.tokenizer(captions[start : start + batch]).to(device)).cpu()
        for start in range(0, len(captions), batch)
    ]
    vectors = {"image": torch.cat(images), "text": torch.cat(texts)}
    return Embedded(places, captions, vectors, {"image": of_image, "text": of_caption})


def zero_shot(
    clip: Clip, host: OpenCLIP, classes: Classes, *, batch: int = 256, workers: int = 0
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent."""
    data = Transformed(classes.samples, clip.transform, torch.tensor)
    batches = ((images, label) for images, label, _ in in_order(data, batch, workers))
    found = evaluate_zero_shot(
        host.encode_image,
        host.encode_text,
        batches,
        classnames=classes.names,
        templates=classes.templates,
        tokenizer=clip.tokenizer,
        ks=tuple(k for k in (1, 5) if k < len(classes.names)) or (1,),
    )
    return {f"zero_shot_top{k}": value for k, value in found.accuracy.items()}


@torch.no_grad()
def temperatures(objective: Objective, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Temperature of each vector by view; of a table, which knows training samples only, some of its entries."""
    found = {}
    for view, x in vectors.items():
        predictor: Any = objective.predictors[view]
        if "index" in predictor.reads:
            table = predictor.tau.detach().cpu()
            found[view] = table[:: len(table) // _MOST + 1]
        else:
            device = next(objective.parameters()).device
            found[view] = predictor(x.to(device)).cpu()
    return found


def validation(
    clip: Clip, host: OpenCLIP, objective: Objective, samples: Labelled, classes: Classes | None, workers: int
) -> Validation:
    """Retrieval among held-out pairs, zero-shot accuracy, and temperatures; the score is the mean R@1, then the sum."""
    found = embedded(clip, host, samples, workers=workers)
    metrics = found.recalls()
    total = sum(metrics.values())
    metrics["mean_r1"] = (metrics["i2t_r1"] + metrics["t2i_r1"]) / 2
    if classes is not None:
        metrics |= zero_shot(clip, host, classes, workers=workers)
    tau = temperatures(objective, found.vectors)
    metrics |= {f"tau_{view}": float(x.mean()) for view, x in tau.items()}
    return Validation(metrics, (metrics["mean_r1"], total), tau)
