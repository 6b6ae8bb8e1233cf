"""What a pass over rows computes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, RowIndex
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.kernels.backends.protocol import Backend
from dro_temp.kernels.exclusions import Exclusions


@dataclass(frozen=True)
class ChunkPlan:
    """A pass without the tensors that belong to autograd, which may free or recompute them.

    Args:
        target: column of each row's target, int64.
        target_in_support: False to leave each row's target out of its support.
        support_size: number of outcomes in each row's support.
        transform: of the products, or None.
        predictor: reads the scores; None where temperatures are an input.
        features: what the predictor may read of each row, or None.
        index: sample numbers, or None.
        backend: what computes on a chunk.
        dtype: of sums over scores, float32 or better.
        score_dtype: of scores in memory: `dtype`, or less where the user says so.
        statistics: names of the statistics to return, detached; those of `LabelStanding` among them, if it is read.
        reads_label: whether `LabelStanding` is computed.
        differentiable: whether E_p[s] and the target's score are results with gradient.
        exclusions: columns that groups exclude, or None.
        log_support_sizes: log of each row's number of outcomes, where groups make it differ, or None.
    """

    target: RowIndex
    target_in_support: bool
    support_size: int
    transform: Callable[[Tensor], Tensor] | None
    predictor: TemperaturePredictor | None
    features: Features | None
    index: RowIndex | None
    backend: Backend
    dtype: torch.dtype
    score_dtype: torch.dtype
    statistics: tuple[str, ...] = ()
    reads_label: bool = False
    differentiable: bool = False
    exclusions: Exclusions | None = None
    log_support_sizes: PerRow | None = None
