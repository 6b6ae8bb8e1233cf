"""Pure functions of tensors: the mathematics of the library, exact in float64.

No module, buffer or device is mentioned here. Notation: a row has scores `s_j` over a support of `m`
outcomes and a target `t`; its margins are `h_j = s_j - s_t`; `tau` is its temperature, `rho` the radius of
the KL ball, `U` the uniform distribution over the support.
"""

from dro_temp.functional.averaging import (
    combine_duplicates,
    log_average,
    log_mirror_average,
    mean_duplicates,
    rows_by_sample,
)
from dro_temp.functional.bounds import clip_between, exp_between, logit_between, sigmoid_between
from dro_temp.functional.groups import LEFT_OUT, UNGROUPED, excluded_by_group, support_sizes
from dro_temp.functional.kl import (
    compositional_log_mean,
    dual_value,
    expected_margins,
    kl_divergence,
    kl_dual,
    kl_weights,
    log_mean_exp,
    margins,
    optimal_tau,
    smoothed_distribution,
)
from dro_temp.functional.risks import (
    chi_square_weights,
    cvar_weights,
    kl_ball_weights,
    mean_under,
    shares,
    tilted_mean,
    weighted_log_mean_exp,
)
from dro_temp.functional.transforms import Scale, ScoreTransform, SoftCap

__all__ = [
    "LEFT_OUT",
    "UNGROUPED",
    "Scale",
    "ScoreTransform",
    "SoftCap",
    "chi_square_weights",
    "clip_between",
    "combine_duplicates",
    "compositional_log_mean",
    "cvar_weights",
    "dual_value",
    "excluded_by_group",
    "exp_between",
    "expected_margins",
    "kl_ball_weights",
    "kl_divergence",
    "kl_dual",
    "kl_weights",
    "log_average",
    "log_mean_exp",
    "log_mirror_average",
    "logit_between",
    "margins",
    "mean_duplicates",
    "mean_under",
    "optimal_tau",
    "rows_by_sample",
    "shares",
    "sigmoid_between",
    "smoothed_distribution",
    "support_sizes",
    "tilted_mean",
    "weighted_log_mean_exp",
]
