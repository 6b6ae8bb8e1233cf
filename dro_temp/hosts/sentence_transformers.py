"""A sentence-transformers model as a host."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp.hosts.pairs import pair_rows, unit
from dro_temp.interfaces import HostAdapter, Rows


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
    ) -> dict[str, Rows]:
        """Anchor rows and positive rows of a batch of pairs.

        Args:
            anchor: features of n texts.
            positive: features of n texts, each the partner of an anchor.
            negatives: columns of n hard negatives each.
            index: the pairs' numbers in the data set, also as a list or an array.
        """
        columns = [self.encode(column) for column in (anchor, positive, *negatives)]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(
                f"expected as many texts in every column, received {[len(column) for column in columns]}. Give each "
                "anchor one positive, and one negative in each further column."
            )
        further = torch.cat(columns[2:]) if negatives else None
        options: Any = {"negatives": further, "gathers": self.objective_trains, "views": self.views}
        return pair_rows(columns[0], columns[1], index, **options)
