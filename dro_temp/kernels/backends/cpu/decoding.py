"""TempNet's temperature for one token at a time, in C."""

from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, Scores
from dro_temp.kernels.backends.cpu.library import native

# With more rows, products of all at once are faster.
MOST_ROWS = 4


def decoding(
    projection: Tensor,
    offset: Tensor,
    ones: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    readout: Tensor,
    *,
    centred: bool,
    sharpness: float,
    bias: float,
    bounds: tuple[float, float],
) -> Callable[[Features, Scores], PerRow]:
    """`(queries, scores) -> tau`, for at most `MOST_ROWS` rows of float32 on a CPU; formula in `decode.c`."""
    function: Any = native().library.decode  # type: ignore[union-attr]
    function.restype = c_float
    width, d = projection.shape
    parts = [
        x.detach().float().contiguous()
        for x in (projection, offset, ones, first_bias, second, second_bias, readout)
    ]
    pointers = [c_void_p(x.data_ptr()) for x in parts]
    numbers = (c_int64(width), c_int(centred), c_float(sharpness), c_float(bias), *map(c_float, bounds))

    def temperatures(queries: Features, scores: Scores, _keep_alive: object = parts) -> PerRow:
        queries, scores = queries.float().contiguous(), scores.float().contiguous()
        scratch = torch.empty(2 * width)  # per call: several threads may generate
        m = scores.shape[1]
        q, s = queries.data_ptr(), scores.data_ptr()
        size = queries.element_size()
        taus = [
            function(
                c_void_p(q + i * d * size),
                c_void_p(s + i * m * size),
                *pointers,
                c_void_p(scratch.data_ptr()),
                c_int64(d),
                c_int64(m),
                *numbers,
            )
            for i in range(len(queries))
        ]
        return torch.tensor(taus)

    return temperatures
