"""The passes over blocks of scores as Triton kernels: each reads the block once or twice, and writes it once.

The same names, signatures and results as the plain modules `passes` and `pair_passes`, of which this package
takes the place. Importing it imports Triton; ask `triton_device.fused_passes` for it.
"""

from dro_temp.kernels.products import add_up, scorer
from dro_temp.kernels.triton_passes.columns import sum_columns_
from dro_temp.kernels.triton_passes.coupling import couple_
from dro_temp.kernels.triton_passes.row_moments import moments
from dro_temp.kernels.triton_passes.rows import profile, sum_rows, tilt_

__all__ = ["add_up", "couple_", "moments", "profile", "scorer", "sum_columns_", "sum_rows", "tilt_"]
