"""The passes over blocks of scores in C: for processors, where they take a fifth of PyTorch's time.

The same names, signatures and results as the plain modules `passes` and `pair_passes`, of which this package
takes the place. The machine's own compiler builds the C files when they are first wanted; ask
`native_device.c_passes` for them.
"""

from dro_temp.kernels.native_passes.passes import couple_, moments, profile, sum_columns_, sum_rows, tilt_
from dro_temp.kernels.native_passes.products import add_up, scorer

__all__ = ["add_up", "couple_", "moments", "profile", "scorer", "sum_columns_", "sum_rows", "tilt_"]
