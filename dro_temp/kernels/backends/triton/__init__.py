"""The backend in Triton, for NVIDIA GPUs: each kernel reads a block of scores once or twice, and writes it once.

Importing it imports Triton; ask `dispatch.triton_backend` for it.
"""

from dro_temp.kernels.backends.triton import pair_tiles as fused_pairs
from dro_temp.kernels.backends.triton import sigmoid_tiles as fused_sigmoid
from dro_temp.kernels.backends.triton import tilted_rows as fused_rows
from dro_temp.kernels.backends.triton.columns import column_sums_
from dro_temp.kernels.backends.triton.pair_logits import pair_logits_grad_
from dro_temp.kernels.backends.triton.row_profile import moments, profile
from dro_temp.kernels.backends.triton.rows import row_sums, softmax_partials_
from dro_temp.kernels.products import accumulate_, scorer

__all__ = [
    "accumulate_",
    "column_sums_",
    "fused_pairs",
    "fused_rows",
    "fused_sigmoid",
    "moments",
    "pair_logits_grad_",
    "profile",
    "row_sums",
    "scorer",
    "softmax_partials_",
]
