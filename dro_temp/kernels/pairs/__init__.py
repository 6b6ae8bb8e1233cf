"""Both sides of pairs from one set of tiles: `local` in one process, `exchanged` where several share the pairs.

`sigmoid` is for losses that classify every pair by itself, in one process or in several.
"""

from dro_temp.kernels.pairs.exchanged import exchanged_log_sums
from dro_temp.kernels.pairs.local import PairLogSums, pair_log_sums, paired_scores

__all__ = ["PairLogSums", "exchanged_log_sums", "pair_log_sums", "paired_scores"]
