"""Hypothesis strategies for the shapes, scales and dtypes that the mathematics must survive."""

import torch
from hypothesis import strategies as st

seeds = st.integers(0, 2**16)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
scales = st.sampled_from([1e-3, 0.1, 1.0, 10.0, 1e3])
rows = st.integers(1, 6)
outcomes = st.integers(2, 40)
taus = st.floats(0.005, 50.0)


@st.composite
def margins(draw, min_outcomes: int = 2):
    """Float64 margins [n m] of random shape, seed and scale; column 0 is the target."""
    n, m = draw(rows), draw(st.integers(min_outcomes, 40))
    g = torch.Generator().manual_seed(draw(seeds))
    scores = draw(scales) * torch.randn(n, m, generator=g, dtype=torch.float64)
    return scores - scores[:, :1]


@st.composite
def masked_margins(draw):
    """Margins with a random support of at least two outcomes in every row."""
    h = draw(margins(min_outcomes=3))
    g = torch.Generator().manual_seed(draw(seeds))
    mask = torch.rand(h.shape, generator=g) < 0.6
    mask[:, -2:] = True
    return h, mask
