"""A predictor that is called inside the sweep over scores, block by block."""

import torch
from torch import Tensor

from dro_temp._typing import PerRow
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.interfaces.rows import Rows, Support
from dro_temp.interfaces.substitution import Substituted
from dro_temp.interfaces.summary import Summary
from dro_temp.kernels import Block


class TauFromScores:
    """Temperatures of rows whose predictor reads their scores: what the streaming kernels call.

    Args:
        predictor: the predictor; to be made inside of its forward, where its parameters are whole.
        rows: its rows; scores are not touched.

    Raises:
        ValueError: a parameter that is sharded still.
    """

    def __init__(self, predictor: TemperaturePredictor, rows: Rows) -> None:
        self._predictor, self._rows = predictor, rows
        self.parameters: tuple[Tensor, ...] = predictor.whole_parameters()
        self.random = predictor.training  # dropout, say

    def __call__(self, block: Block, parameters: tuple[Tensor, ...]) -> PerRow:
        """Temperatures of a block, computed with these parameters in place of the predictor's own."""
        rows, predictor = self._rows, self._predictor
        substituted = Substituted(self.parameters, parameters)
        support = None
        if "support" in predictor.reads:
            # A copy, since the sweep overwrites its buffer before autograd may look at it again.
            support = Support(block.scores.clone(), block.mask, rows.support_size)
        summary = None
        if "summary" in predictor.reads:

            def project(weight: Tensor, shift: PerRow | None) -> Tensor:
                return block.project(substituted.of(weight), shift)

            summary = Summary(block.scores, block.mask, project, block.profile)
        with substituted:
            return predictor.predict(
                None if rows.features is None else rows.features[block.rows],
                index=None if rows.index is None else rows.index[block.rows],
                support=support,
                summary=summary,
                shape=torch.Size([len(block.scores)]),
            )
