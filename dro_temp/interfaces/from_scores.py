"""A predictor that is called inside the sweep over scores, block by block."""

import torch
from torch import Tensor
from torch.func import functional_call

from dro_temp._typing import PerRow
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.interfaces.rows import Rows, Support
from dro_temp.interfaces.summary import Summary
from dro_temp.kernels import Block


class TauFromScores:
    """Temperatures of rows whose predictor reads their scores: what the streaming kernels call.

    Args:
        predictor: the predictor.
        rows: its rows; scores are not touched.
    """

    def __init__(self, predictor: TemperaturePredictor, rows: Rows) -> None:
        self._predictor, self._rows = predictor, rows
        named = dict(predictor.named_parameters())
        self._names = tuple(named)
        self.parameters: tuple[Tensor, ...] = tuple(named.values())
        self.random = predictor.training  # dropout, say

    def __call__(self, block: Block, parameters: tuple[Tensor, ...]) -> PerRow:
        """Temperatures of a block, computed with these parameters in place of the predictor's own."""
        rows, predictor = self._rows, self._predictor
        support = None
        if "support" in predictor.reads:
            # A copy, since the sweep overwrites its buffer before autograd may look at it again.
            support = Support(block.scores.clone(), block.mask, rows.support_size)
        summary = None
        if "summary" in predictor.reads:
            summary = Summary(block.scores, block.mask, block.project, block.profile)
        tau: Tensor = functional_call(
            predictor,
            dict(zip(self._names, parameters, strict=True)),
            (None if rows.features is None else rows.features[block.rows],),
            {
                "index": None if rows.index is None else rows.index[block.rows],
                "support": support,
                "summary": summary,
                "shape": torch.Size([len(block.scores)]),
            },
        )
        return tau
