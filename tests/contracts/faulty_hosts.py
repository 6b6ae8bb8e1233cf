"""A host of texts with padding and one of pairs that are right, and faults of them."""

from dataclasses import replace

import torch
from faults import Fault
from torch import nn

import dro_temp as dt
from dro_temp import functional as F
from dro_temp import testing
from dro_temp.interfaces import LinearScores, Rows


class Tagger(dt.HostAdapter):
    """A tag for every word of a batch of texts, some of them shorter: the right one."""

    views = ("word",)

    def __init__(self, *, frozen=False):
        super().__init__(frozen=frozen)
        self.encoder, self.head = nn.Linear(6, 3), nn.Linear(3, 4)

    def rows(self, words, tags, mask, index=None):
        hidden = self.encoder(words).flatten(0, 1)
        scores = LinearScores(hidden, self.head.weight, self.head.bias)
        index = None if index is None else index[:, None].expand_as(tags).flatten()
        return {"word": dt.hosts.labelled_rows(scores, tags.flatten(), hidden, index, mask=mask.flatten())}

    def changed(self, batch, **changes):
        """What the right host makes, with parts exchanged."""
        return {
            view: replace(r, **{k: f(r) for k, f in changes.items()})
            for view, r in Tagger.rows(self, **batch).items()
        }


def _words(n):
    g = torch.Generator().manual_seed(n)
    mask = torch.ones(n, 5, dtype=torch.long)
    mask[0, 3:] = 0
    tags = torch.randint(4, (n, 5), generator=g)
    index = torch.randperm(50, generator=g)[:n]
    return {"words": torch.randn(n, 5, 6, generator=g), "tags": tags, "mask": mask, "index": index}


def _tagged(host, batch):
    """The rows of `Tagger`, by hand."""
    hidden = host.encoder(batch["words"]).flatten(0, 1)
    weight = batch["mask"].flatten().float()
    index = batch["index"].repeat_interleave(5)
    return {"word": Rows(host.head(hidden), batch["tags"].flatten(), hidden, index, weight=weight)}


class DropsPadding(Tagger):
    def rows(self, **batch):
        return self.changed(batch, weight=lambda r: None)


class RotatesTargets(Tagger):
    def rows(self, **batch):
        return self.changed(batch, target=lambda r: r.target.roll(1))


class FlipsNumbers(Tagger):
    def rows(self, **batch):
        return self.changed(batch, index=lambda r: r.index.flip(0))


class RepeatsNumbers(Tagger):
    def rows(self, words, tags, mask, index):
        return super().rows(words, tags, mask, index[:1].expand_as(index))


class DropsNumbers(Tagger):
    def rows(self, **batch):
        return self.changed(batch, index=lambda r: None)


class OwnTemperature(Tagger):
    """Logits that were divided before they became scores."""

    def rows(self, **batch):
        return self.changed(batch, scores=lambda r: r.dense_scores / 0.7)


class StopsTheEncodersGradient(Tagger):
    def rows(self, **batch):
        detached = lambda r: replace(r.scores, queries=r.scores.queries.detach())  # noqa: E731
        return self.changed(batch, scores=detached)


class HalfTheGradient(Tagger):
    """The right scores, of which the head learns half."""

    def rows(self, **batch):
        def half(r):
            return 0.5 * r.dense_scores + 0.5 * replace(r.scores, keys=r.scores.keys.detach()).dense()

        return self.changed(batch, scores=half)


class TargetsOutOfRange(Tagger):
    def rows(self, **batch):
        return self.changed(batch, target=lambda r: r.target + 4)


class TargetsAreNoOutcomes(Tagger):
    def rows(self, **batch):
        return self.changed(batch, target_in_support=lambda r: False)


class UnfreezesWeights(Tagger):
    def rows(self, **batch):
        self.requires_grad_(True)
        return super().rows(**batch)


class TrainsThoughFrozen(Tagger):
    def __init__(self, *, frozen=False):
        super().__init__()


class WritesThoughFrozen(Tagger):
    """A running mean of the head's bias, in forward."""

    def rows(self, **batch):
        with torch.no_grad():
            self.head.bias.add_(0.1)
        return super().rows(**batch)


class UndeclaredView(Tagger):
    def rows(self, **batch):
        rows = super().rows(**batch)
        return rows | {"again": rows["word"]}


class SmoothsLabels(Tagger):
    def rows(self, **batch):
        return self.changed(
            batch, target_distribution=lambda r: F.smoothed_distribution(r.target, r.scores.shape[1], 0.1)
        )


def _pairs(host, batch):
    """The rows of `TwoTower`, by hand."""
    x, y = host.image_encoder(batch["images"]), host.text_encoder(batch["texts"])
    x, y, target = nn.functional.normalize(x, dim=1), nn.functional.normalize(y, dim=1), torch.arange(len(x))
    return {
        "image": Rows(x @ y.T, target, x, batch["index"], target_in_support=False),
        "text": Rows(y @ x.T, target, y, batch["index"], target_in_support=False),
    }


class Pairs(dt.hosts.TwoTower):
    """Two towers: the right one."""

    def __init__(self, *, frozen=False):
        super().__init__(nn.Linear(6, 4), nn.Linear(5, 4), frozen=frozen)


class OtherViewsFeatures(Pairs):
    def rows(self, **batch):
        rows = super().rows(**batch)
        return {view: replace(r, features=rows["text"].features) for view, r in rows.items()}


class OtherViewsScores(Pairs):
    def rows(self, **batch):
        rows = super().rows(**batch)
        return {view: replace(r, scores=rows["image"].scores) for view, r in rows.items()}


class ViewsInAnotherOrder(Pairs):
    def rows(self, **batch):
        return dict(reversed(super().rows(**batch).items()))


def _batch_of_pairs(n):
    g = torch.Generator().manual_seed(n)
    images, texts = torch.randn(n, 6, generator=g), torch.randn(n, 5, generator=g)
    return {"images": images, "texts": texts, "index": torch.randperm(50, generator=g)[:n]}


def _tagger(name, build, contract, message):
    return Fault(name, testing.HostCase(name, build, _words, _tagged), contract, message)


def _pair_host(name, build, contract, message):
    return Fault(name, testing.HostCase(name, build, _batch_of_pairs, _pairs), contract, message)


EXPECTED = "makes_the_expected_rows"
FAULTS = (
    _tagger("drops the weights of padding", DropsPadding, EXPECTED, "weights of view 'word'"),
    _tagger("rotates targets", RotatesTargets, EXPECTED, "targets of view 'word'"),
    _tagger("flips sample numbers", FlipsNumbers, EXPECTED, "sample numbers of view 'word'"),
    _tagger("repeats sample numbers", RepeatsNumbers, EXPECTED, "sample numbers of view 'word'"),
    _tagger("drops sample numbers", DropsNumbers, EXPECTED, "sample numbers of view 'word'.*received None"),
    _tagger(
        "scores that are not the logits", OwnTemperature, EXPECTED, "scores of view 'word'.*the model's own"
    ),
    _tagger(
        "targets declared to be no outcomes",
        TargetsAreNoOutcomes,
        EXPECTED,
        "target_in_support of view 'word'",
    ),
    _tagger("smooths labels unasked", SmoothsLabels, EXPECTED, "target distributions of view 'word'"),
    _tagger(
        "a part without gradient",
        StopsTheEncodersGradient,
        "trains_the_model",
        "expected a gradient of encoder",
    ),
    _tagger("half of the gradient", HalfTheGradient, "trains_the_model", "gradients from the host's scores"),
    _tagger(
        "targets out of range", TargetsOutOfRange, "makes_rows_of_every_view", "expected targets from 0 to 3"
    ),
    _tagger("a view that is not declared", UndeclaredView, "makes_rows_of_every_view", "expected the views"),
    _tagger("trains a frozen weight", UnfreezesWeights, "leaves_a_frozen_part_alone", "to stay frozen"),
    _tagger(
        "ignores frozen=True", TrainsThoughFrozen, "leaves_frozen_weights_alone", "expected a frozen host"
    ),
    _tagger(
        "writes to a frozen weight", WritesThoughFrozen, "leaves_frozen_weights_alone", "another head.bias"
    ),
    _pair_host("another view's features", OtherViewsFeatures, EXPECTED, "features of view 'image'"),
    _pair_host("another view's scores", OtherViewsScores, EXPECTED, "scores of view 'text'"),
    _pair_host("views that are no mirrors", OtherViewsScores, "mirrors_as_declared", "transposed"),
    _pair_host(
        "views in another order", ViewsInAnotherOrder, "makes_rows_of_every_view", "expected the views"
    ),
)


RIGHT = (
    testing.HostCase("tagger", Tagger, _words, _tagged),
    testing.HostCase("pairs", Pairs, _batch_of_pairs, _pairs),
)
