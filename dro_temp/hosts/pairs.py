"""Hosts of pairs: from the vectors of two encoders, of two views or of texts, to rows of both sides."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp import distributed
from dro_temp import functional as F
from dro_temp._checks import check_integers, check_kind
from dro_temp._tensors import LOW
from dro_temp.functional.statistics import NOT_AN_OUTCOME
from dro_temp.hosts.labels import as_index
from dro_temp.interfaces import HostAdapter, LinearScores, Rows


def unit(vectors: Any, encoder: str) -> Tensor:
    """An encoder's output [n d] as vectors of length one, in float32 or better, also under autocast."""
    if not isinstance(vectors, Tensor):
        raise TypeError(
            f"expected the {encoder} to return a tensor [n, d], received {type(vectors).__name__}. "
            "Wrap it in a module that returns the pooled vectors alone."
        )
    with torch.autocast(vectors.device.type, enabled=False):
        return nn.functional.normalize(vectors.float() if vectors.dtype in LOW else vectors, dim=-1)


def pair_rows(
    image: Tensor,
    text: Tensor,
    index: Any = None,
    *,
    group: Any = None,
    negatives: Tensor | None = None,
    negatives_group: Any = None,
    gathers: bool = False,
    views: tuple[str, str] = ("image", "text"),
) -> dict[str, Rows]:
    r"""Rows of both sides of a batch of pairs, for a host of your own: $s_{ij} = x_i^\top y_j$, and its transpose.

    The target of each row is its own partner, which is not an outcome. In several processes columns come from all of
    them, with their gradient: a host that scores its own batch alone would silently train on fewer outcomes.

    Args:
        image: vectors x of the first side, [n d], usually of length one.
        text: vectors y of the second side, [n d].
        index: the pairs' numbers in the data set, also as a list or an array.
        group: numbers of the pairs' groups, also as a list or an array: pairs of one group (duplicates, captions of one
            image, a class) are not each other's negatives. -1: alone; -2 (`functional.LEFT_OUT`): nobody's negative,
            and without negatives. Or a tuple of two, of the images and of the texts: image i and text j are no
            negatives of each other where their numbers are equal. On all processes, or on none.
        negatives: vectors [k d] of the second side that belong to no pair: columns without rows.
        negatives_group: their groups, [k]: no negatives of the images of the same group.
        gathers: True to take columns from all processes: `self.objective_trains` of a host. False where one process may
            run alone, as in an evaluation.
        views: names of the two sides; a host declares them as its `views`, and as `mirrored`.

    Returns:
        Rows of each view, with the vectors of its side as features.

    Raises:
        ValueError: vectors that are not [n d], or differ in number or width; an index or groups of another length.
        RuntimeError: one of several processes that were launched, without a process group.

    Example:
        >>> import torch, dro_temp as dt
        >>> x, y = (torch.nn.functional.normalize(torch.randn(3, 8)) for _ in range(2))
        >>> rows = dt.hosts.pair_rows(x, y, views=("audio", "text"))
        >>> rows["audio"].target.tolist(), rows["text"].support_size
        ([0, 1, 2], 2)
        >>> dt.hosts.pair_rows(x, y, group=[7, 7, -1])["image"].support_sizes  # the first two are duplicates
        tensor([1, 1, 2])
    """
    together = gathers and distributed.world_size() > 1
    with distributed.raising_together(image.device) if together else nullcontext():
        index = index if isinstance(index, Tensor) else as_index(index, image.device)
        if image.dim() != 2 or image.shape != text.shape:
            raise ValueError(
                f"expected both encoders to return [n, d] with the same n and d, received {list(image.shape)} for "
                f"view {views[0]!r} and {list(text.shape)} for view {views[1]!r}. Pool to one vector per input, "
                "project both to one width, and pass as many images as texts, or two views of each sample."
            )
        if index is not None and index.shape != image.shape[:1]:
            raise ValueError(
                f"expected index of shape [{len(image)}], one per pair, received {list(index.shape)}. Pass each "
                "pair's number in the data set."
            )
        groups = None if group is None else _groups_of(group, image, views)
        further_group = None
        if negatives_group is not None or (groups is not None and negatives is not None):
            further_group = _group_of_negatives(negatives_group, negatives, groups)
    if gathers and not together:
        distributed.refuse_missing_group()
    start, image_scores = 0, LinearScores(image, text)
    text_scores = image_scores.transposed()
    if together:
        # Nothing flows back through the gathering where losses exchange per-row numbers instead.
        all_images, start = distributed.gather_rows_with_gradient(image)
        all_texts, _ = distributed.gather_rows_with_gradient(text)
        image_scores = LinearScores(image, all_texts, local_keys=text)
        text_scores = LinearScores(text, all_images, local_keys=image)
    if negatives is not None:
        further = distributed.gather_rows_with_gradient(negatives)[0] if together else negatives
        image_scores = LinearScores(image, torch.cat([image_scores.keys, further]))
    target = torch.arange(start, start + len(image), device=image.device)
    of_image: dict[str, Any] = {}
    of_text: dict[str, Any] = {}
    if groups is not None:
        image_group, text_group = groups
        image_columns = distributed.gather_rows(image_group)[0] if together else image_group
        text_columns = image_columns if text_group is image_group else text_group
        if together and text_group is not image_group:
            text_columns = distributed.gather_rows(text_group)[0]
        of_text = {"group": text_group, "column_group": image_columns}
        if further_group is not None:
            further_group = distributed.gather_rows(further_group)[0] if together else further_group
            text_columns = torch.cat([text_columns, further_group])
        of_image = {"group": image_group, "column_group": text_columns}
    return {
        views[0]: Rows(image_scores, target, image, index, target_in_support=False, **of_image),
        views[1]: Rows(text_scores, target, text, index, target_in_support=False, **of_text),
    }


def _groups_of(group: Any, image: Tensor, views: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Numbers of both sides' groups, int64; one tensor for both, or a tuple of two."""
    sides = group if isinstance(group, tuple) and len(group) == 2 and not _is_number(group[0]) else (group,)
    numbers = []
    for view, side in zip(views, sides, strict=False):
        number = as_index(side, image.device, name="group")
        if number is not None:
            check_integers("group", number)
        if number is None or number.shape != image.shape[:1]:
            received = "None" if number is None else list(number.shape)
            raise ValueError(
                f"expected a group of shape [{len(image)}] of view {view!r}, one per pair, received {received}. Pass "
                "the number of each pair's group, -1 for a pair that is alone in its own."
            )
        numbers.append(number.long())
    return numbers[0], numbers[-1]


def _is_number(x: Any) -> bool:
    return isinstance(x, int) or getattr(x, "ndim", 1) == 0


def _group_of_negatives(group: Any, negatives: Tensor | None, groups: tuple[Tensor, Tensor] | None) -> Tensor:
    """Numbers of the groups of further columns, int64; each alone if none are given."""
    if negatives is None or groups is None:
        raise ValueError(
            "expected negatives_group beside negatives and group, received it without them. Pass all three, with -1 "
            "for what is alone in its group."
        )
    if group is None:
        return groups[0].new_full((len(negatives),), F.UNGROUPED)
    number = as_index(group, negatives.device, name="negatives_group")
    if number is not None:
        check_integers("negatives_group", number)
    if number is None or number.shape != negatives.shape[:1]:
        received = "None" if number is None else list(number.shape)
        raise ValueError(
            f"expected negatives_group of shape [{len(negatives)}], one per negative, received {received}. Pass the "
            "number of each negative's group, -1 for one that is alone in its own."
        )
    return number.long()


def freeze_own_scale(model: nn.Module) -> None:
    """Freeze the model's scalar parameters, such as `logit_scale`: DistributedDataParallel raises over unused ones."""
    for parameter in model.parameters(recurse=False):
        if parameter.numel() == 1:
            parameter.requires_grad_(False)


class TwoTower(HostAdapter):
    r"""Any two encoders, scored by cosine similarity: $s_{ij} = x_i^\top y_j$ with $\|x\| = \|y\| = 1$.

    An image row scores one image against all texts of the batch, a text row one text against all images. The
    target is the row's own partner and is not in its support: the adversary weights the others. In training with
    several processes, rows are local and columns come from all of them.

    Args:
        image_encoder: module with `image_encoder(images) -> [n d]`; any length.
        text_encoder: module with `text_encoder(texts) -> [n d]`.
        frozen: True to leave both encoders alone.

    Raises:
        ValueError: encodings that are not two-dimensional, or differ in number or width.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> rows = host(torch.randn(8, 6), torch.randn(8, 5))
        >>> list(rows), rows["image"].support_size
        (['image', 'text'], 7)
    """

    views = mirrored = ("image", "text")
    checks_values = True

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, *, frozen: bool = False) -> None:
        super().__init__(frozen=frozen)
        for name, encoder in (("image_encoder", image_encoder), ("text_encoder", text_encoder)):
            check_kind(name, encoder, nn.Module, "Pass a torch.nn.Module that maps a batch to [n, d].")
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder

    def encode_image(self, images: Any) -> Tensor:
        """Unit vectors [n d] of images, in float32 or better: what image rows' predictors read."""
        return unit(self.image_encoder(images), "image encoder")

    def encode_text(self, texts: Any) -> Tensor:
        """Unit vectors [n d] of texts, in float32 or better: what text rows' predictors read."""
        return unit(self.text_encoder(texts), "text encoder")

    def rows(self, images: Any, texts: Any, index: Any = None, group: Any = None) -> dict[str, Rows]:
        """Rows of a batch of pairs.

        Args:
            images: what the image encoder takes.
            texts: what the text encoder takes.
            index: the pairs' numbers in the data set, also as a list or an array.
            group: numbers of the pairs' groups, or a tuple of the images' and the texts': those of one group are no
                negatives of each other, see `pair_rows`.
        """
        image, text = self.encode_image(images), self.encode_text(texts)
        return pair_rows(image, text, index, group=group, gathers=self.objective_trains)


class TwoViews(HostAdapter):
    r"""Two views of each sample through one encoder: every row scores against both views of all samples but itself.

    $s_{ij} = x_i^\top z_j$ with unit vectors, z running over both views of the batch. The target is the sample's own
    other view; it and the row itself are not in the support, which leaves 2B - 2 negatives in a batch of B. In
    training with several processes, rows are local and columns come from all of them.

    With `group`, samples of one group are no negatives of each other either; `SupervisedContrastiveLoss` takes them for
    further positives.

    The score matrix of each view, [B, 2B - 1], or with groups [B, 2B], is materialised: 32 MB at 2,048 samples.

    Args:
        encoder: module with `encoder(inputs) -> [n d]`, projection head included; any length.
        frozen: True to leave it alone.

    Raises:
        ValueError: encodings that are not two-dimensional, or differ in number or width.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoViews(torch.nn.Linear(6, 4))
        >>> rows = host(torch.randn(8, 6), torch.randn(8, 6))
        >>> list(rows), rows["first"].support_size
        (['first', 'second'], 14)

    Source: arXiv 2002.05709 (SimCLR); arXiv 2202.12387 (SogCLR).
    """

    views = ("first", "second")

    def __init__(self, encoder: nn.Module, *, frozen: bool = False) -> None:
        super().__init__(frozen=frozen)
        check_kind("encoder", encoder, nn.Module, "Pass a torch.nn.Module that maps a batch to [n, d].")
        self.encoder = encoder

    def encode(self, inputs: Any) -> Tensor:
        """Unit vectors [n d], in float32 or better: what predictors read."""
        return unit(self.encoder(inputs), "encoder")

    def rows(self, first: Any, second: Any, index: Any = None, group: Any = None) -> dict[str, Rows]:
        """Rows of two views of the same samples.

        Args:
            first: the first view, as the encoder takes it.
            second: the second.
            index: the samples' numbers in the data set, also as a list or an array.
            group: numbers of the samples' groups (classes, say), also as a list or an array; -1: alone.
        """
        x, y, gathers = self.encode(first), self.encode(second), self.objective_trains
        pairs = pair_rows(x, y, index, group=group, gathers=gathers, views=("first", "second"))
        x_rows, y_rows = pairs.values()
        if x_rows.column_group is not None and x_rows.column_group is not y_rows.column_group:
            raise ValueError(
                "expected one group for each sample, received one for each of its views. Pass group=[...], [n]."
            )
        return {"first": _against_both(x_rows, y_rows), "second": _against_both(y_rows, x_rows)}


def _against_both(rows: Rows, mirror: Rows) -> Rows:
    """Scores against the row's own view without itself, then against the other view."""
    assert isinstance(rows.scores, LinearScores)
    assert isinstance(mirror.scores, LinearScores)
    x, own_view, other_view = rows.scores.queries, mirror.scores.keys, rows.scores.keys
    if rows.column_group is not None:
        # Each sample has a group of its own at least, which excludes the row itself.
        group = _numbered_alone(rows.column_group)
        with torch.autocast(x.device.type, enabled=False):
            scores = torch.cat(
                [(x @ own_view.T).scatter(1, rows.target[:, None], NOT_AN_OUTCOME), x @ other_view.T], 1
            )
        groups: Any = {"group": group[rows.target], "column_group": group.repeat(2)}
        return replace(rows, scores=scores, target=rows.target + len(own_view), **groups)
    others = torch.arange(max(len(own_view) - 1, 0), device=x.device).expand(len(x), -1)
    others = others + (others >= rows.target[:, None])
    with torch.autocast(x.device.type, enabled=False):
        scores = torch.cat([(x @ own_view.T).gather(1, others), x @ other_view.T], 1)
    return replace(rows, scores=scores, target=rows.target + others.shape[1])


def _numbered_alone(group: Tensor) -> Tensor:
    """Numbers from 0 on of the same groups, in which each sample that was alone has one of its own."""
    n = len(group)
    # The place of its first member among all, sorted: `unique` would wait for a device.
    number = torch.searchsorted(group.sort().values, group)
    alone = torch.arange(n, 2 * n, device=group.device)
    number = torch.where(group < 0, alone, number)
    return torch.where(group == F.LEFT_OUT, group, number)


class SentenceTransformers(HostAdapter):
    r"""A `SentenceTransformer`, scored by cosine similarity: $s_{ij} = x_i^\top y_j$ with $\|x\| = \|y\| = 1$.

    An anchor row scores one anchor against all positives of the batch and all hard negatives, its own and those of the
    others; a positive row scores one positive against all anchors. The target is the row's own partner and is not in
    its support. In training with several processes rows are local, and columns come from all of them.

    Args:
        model: a `sentence_transformers.SentenceTransformer`, or any module that returns a dictionary with
            "sentence_embedding" [n d] for the features of n texts.
        frozen: True to leave the model alone.

    Raises:
        TypeError: a model that returns no "sentence_embedding".
        ValueError: columns of different lengths, or embeddings of different widths.

    Example:
        >>> import torch, dro_temp as dt
        >>> class Bag(torch.nn.EmbeddingBag):
        ...     def forward(self, features):
        ...         return {"sentence_embedding": super().forward(features["input_ids"])}
        >>> host = dt.hosts.SentenceTransformers(Bag(99, 16))
        >>> anchor, positive, negative = ({"input_ids": torch.randint(99, (8, 5))} for _ in range(3))
        >>> rows = host(anchor, positive, [negative])
        >>> rows["anchor"].support_size, rows["positive"].support_size
        (15, 7)
    """

    views = mirrored = ("anchor", "positive")

    def __init__(self, model: nn.Module, *, frozen: bool = False) -> None:
        super().__init__(frozen=frozen)
        self.model = model

    def encode(self, features: Mapping[str, Any]) -> Tensor:
        """Unit vectors [n d] of a column that the model's own tokeniser made, in float32 or better: for predictors."""
        output = self.model(features)
        if not isinstance(output, Mapping) or "sentence_embedding" not in output:
            raise TypeError(
                "expected a model that returns a dictionary with 'sentence_embedding', received "
                f"{type(output).__name__} from {type(self.model).__name__}. Pass a SentenceTransformer that pools, or "
                "use TwoTower."
            )
        return unit(output["sentence_embedding"], "sentence encoder")

    def rows(
        self,
        anchor: Mapping[str, Any],
        positive: Mapping[str, Any],
        negatives: Sequence[Mapping[str, Any]] = (),
        index: Any = None,
        group: Any = None,
        negatives_group: Any = None,
    ) -> dict[str, Rows]:
        """Anchor rows and positive rows of a batch of pairs.

        Args:
            anchor: features of n texts.
            positive: features of n texts, each the partner of an anchor.
            negatives: columns of n hard negatives each.
            index: the pairs' numbers in the data set, also as a list or an array.
            group: numbers of the pairs' groups, or a tuple of the anchors' and the positives', see `pair_rows`.
            negatives_group: numbers of the hard negatives' groups, [n] of each column, one column after the other.
        """
        columns = [self.encode(column) for column in (anchor, positive, *negatives)]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(
                f"expected as many texts in every column, received {[len(column) for column in columns]}. Give each "
                "anchor one positive, and one negative in each further column."
            )
        further = torch.cat(columns[2:]) if negatives else None
        options: Any = {"negatives": further, "gathers": self.objective_trains, "views": self.views}
        options |= {"group": group, "negatives_group": negatives_group}
        return pair_rows(columns[0], columns[1], index, **options)
