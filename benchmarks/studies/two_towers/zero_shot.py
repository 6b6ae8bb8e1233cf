"""Zero-shot classification of glyphs with unseen names by kind, the first word of a name: greek, braille, ..."""

from collections import Counter

import torch
from glyphs.data import Pairs
from torch import Tensor, nn

FEWEST_PROMPTS, FEWEST_IMAGES = 5, 20


def kind(name: str) -> str:
    """The first word of a name."""
    return name.split()[0]


def script_accuracy(train: Pairs, test: Pairs, names: Tensor, images: Tensor) -> dict[str, float]:
    """Accuracy in percent, averaged over kinds; a kind is represented by the mean embedding of its training names.

    A single hand-written prompt for each kind stayed near chance.

    Args:
        train: training pairs.
        test: pairs of unseen names.
        names: embeddings of the training names.
        images: embeddings of the test images.
    """
    prompts = Counter(kind(name) for name in train.names)
    shown = Counter(kind(test.names[i]) for i in test.name_index.tolist())
    kinds = sorted(k for k in prompts if prompts[k] >= FEWEST_PROMPTS and shown[k] >= FEWEST_IMAGES)
    place = {k: i for i, k in enumerate(kinds)}
    owner = torch.tensor([place.get(kind(name), len(kinds)) for name in train.names])
    sums = torch.zeros(len(kinds) + 1, names.shape[1]).index_add_(0, owner, names)[:-1]
    label = torch.tensor([place.get(kind(test.names[i]), -1) for i in test.name_index.tolist()])
    right = (images @ nn.functional.normalize(sums, dim=1).T).argmax(1) == label
    each = [right[label == i].double().mean() for i in range(len(kinds))]
    return {"zero_shot": 100 * float(torch.stack(each).mean()), "zero_shot_kinds": float(len(kinds))}
