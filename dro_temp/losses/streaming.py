"""Losses that stream over scores that are products: which backend takes which rows."""

from typing import TypeAlias, final

import torch
from torch import Tensor

from dro_temp.functional import ScoreTransform
from dro_temp.interfaces import BackendChoice, LinearScores, RobustLoss, Rows, TemperaturePredictor
from dro_temp.kernels.dispatch import BackendOption, check_backend, fastest_backend

#: Temperatures of some rows, or what predicts them.
Taus: TypeAlias = Tensor | TemperaturePredictor

# Below this, the score matrix costs less than the Python that avoids it.
SMALL_MATRIX = 2**20

_EXCHANGED = "several processes exchange numbers per row in place of gradients"


class StreamingLoss(RobustLoss):
    """A loss that streams over scores that are products; a subclass implements `_streamed`.

    Args:
        backend: see `LogMeanExpLoss`.
    """

    def __init__(self, *, backend: BackendOption = "auto") -> None:
        super().__init__()
        self.backend = check_backend(backend)

    @final
    def choose_backend(self, rows: Rows, small_matrix: int | None = None) -> BackendChoice:
        """The backend for these rows.

        Args:
            rows: to be evaluated.
            small_matrix: bytes of a score matrix that "auto" stores; None: a megabyte.

        Raises:
            ValueError: the requested backend does not support these rows.
        """
        scores, option = rows.scores, self.backend
        if not isinstance(scores, LinearScores):
            return BackendChoice("reference", "the scores are a matrix already")
        if option == "reference":
            return BackendChoice("reference", "backend='reference'")
        if rows.target_distribution is not None:
            if option == "auto":
                return BackendChoice("reference", "target distributions are as large as the score matrix")
            raise ValueError(
                f"expected one target per row for backend={option!r}, received target distributions, which are as "
                "large as the score matrix that it avoids. Pass backend='auto', or class numbers."
            )
        n, m = scores.queries.shape[0], scores.keys.shape[0]
        if m == (0 if rows.target_in_support else 1):
            return BackendChoice("reference", "there are no outcomes")
        if not (scores.transform is None or isinstance(scores.transform, ScoreTransform)):
            if option == "auto":
                return BackendChoice("reference", "the transform has no derivative defined")
            raise ValueError(
                f"expected a ScoreTransform for backend={option!r}, received {scores.transform!r}, which has no "
                "derivative defined. Pass SoftCap(cap), Scale(factor) or a ScoreTransform of your own, or "
                "backend='reference'."
            )
        if option != "auto":
            return BackendChoice(option, f"backend={option!r}")
        dtype = scores.dtype
        size = n * m * dtype.itemsize
        # A number in the text would specialise a compiled graph on it.
        compiling = torch.compiler.is_compiling()
        if size <= (SMALL_MATRIX if small_matrix is None else small_matrix):
            few = "few" if compiling else size
            return BackendChoice("reference", f"the score matrix takes {few} bytes only")
        many = "too many" if compiling else size
        name = fastest_backend(scores.queries.device, dtype)
        return BackendChoice(name, f"the score matrix would take {many} bytes")

    def _mirrored_backends(
        self, other: "StreamingLoss", rows: tuple[Rows, Rows]
    ) -> tuple[BackendChoice, BackendChoice] | None:
        """The backend of both sides; None if they cannot share their tiles."""
        first, second = rows[0].scores, rows[1].scores
        if not (isinstance(first, LinearScores) and isinstance(second, LinearScores)):
            return None
        weighted = rows[0].weight is not None or rows[1].weight is not None
        if weighted or "reference" in (self.backend, other.backend):
            return None
        if first.is_share_of_transpose_of(second):
            if rows[0].support_size == 0:
                return None
            # Not by the number of rows, which differs between processes: all must make the same choice.
            fastest = fastest_backend(first.queries.device, first.dtype)
            names = [fastest if loss.backend == "auto" else loss.backend for loss in (self, other)]
            choices = (BackendChoice(names[0], _EXCHANGED), BackendChoice(names[1], _EXCHANGED))
        elif first.is_transpose_of(second):
            # On a GPU one kernel sums both sides of few pairs, where a matrix takes dozens of launches.
            small = -1 if first.queries.is_cuda else None
            choice = self.choose_backend(rows[0], small)  # of scores of the same size and precision
            same = other.backend == self.backend
            choices = choice, choice if same else other.choose_backend(rows[1], small)
        else:
            return None
        return choices if choices[0].name == choices[1].name != "reference" else None
