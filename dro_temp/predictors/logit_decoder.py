"""TempNet over a frozen head's logits, prepared for generation: few rows at a time, called for every token."""

import torch

from dro_temp._typing import Features, PerRow, Scores
from dro_temp.interfaces import Decoder, FrozenHead, ScoreStatistics, TemperaturePredictor
from dro_temp.kernels.backends.cpu.decoding import MOST_ROWS, decoding
from dro_temp.kernels.dispatch import cpu_runs_on
from dro_temp.predictors.encoders import LogitEncoder
from dro_temp.predictors.readouts import PooledReadout


@torch.no_grad()
def logit_decoder(
    predictor: TemperaturePredictor, encoder: LogitEncoder, pooling: PooledReadout, head: FrozenHead
) -> Decoder:
    r"""Temperatures of a frozen head's own logits, by few calls, or by one into C.

    The first layer is folded into the head, so that a product with the hidden state takes the place of one with all
    logits. The rest costs a fiftieth of the head's own product or less, if it is one call: in separate calls their
    overhead would dominate. Bounds and parameters of the predictor are read now.
    """
    projection, offset, ones = head.parts(encoder.first.weight)
    last = encoder.rest[-1]
    assert isinstance(last, torch.nn.Linear)
    # As generation computes: in float32 or better, whatever the parameters are kept in.
    first_bias, second, second_bias, readout, bias = (
        x.detach().to(projection.dtype)
        for x in (encoder.first.bias, last.weight, last.bias, pooling.last.weight, pooling.last.bias)
    )
    sharpness = float((-pooling.log_sharpness).exp())

    @torch.no_grad()
    def many(queries: Features, scores: Scores) -> PerRow:
        queries, scores = queries.to(projection.dtype), scores.to(projection.dtype)
        hidden = torch.addmm(offset, queries, projection.T)
        statistics, top = ScoreStatistics(scores), None
        if encoder.centred:
            top = scores.amax(1)
            hidden = hidden - top[:, None] * ones
        length = statistics.norm_about(top).clamp_(min=1e-12)[:, None]
        v = torch.addmm(second_bias, torch.addcdiv(first_bias, hidden, length).sigmoid_(), second.T)
        pooled = (v * sharpness).softmax(1).sub_(1.0 / encoder.width).mul_(v)
        return predictor.bound(torch.addmm(bias, pooled, readout.T).squeeze(1))

    if type(predictor).bound is not TemperaturePredictor.bound or not cpu_runs_on(
        projection.device, projection.dtype
    ):
        return many
    few = decoding(
        *(projection, offset, ones, first_bias, second, second_bias, readout),
        centred=encoder.centred,
        sharpness=sharpness,
        bias=float(bias),
        bounds=(predictor.tau_min, predictor.tau_max),
    )

    return lambda queries, scores: (many if len(scores) > MOST_ROWS else few)(queries, scores)
