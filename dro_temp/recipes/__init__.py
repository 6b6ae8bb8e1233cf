"""Named schemes: each function composes a predictor, a loss and an estimator into an `Objective` over a host.

They have no state of their own. Copy one to vary what it leaves fixed.
"""

from dro_temp.recipes.baselines import cyclip, infonce, siglip, simclr
from dro_temp.recipes.fastclip import fastclip_v0, fastclip_v1, fastclip_v2, fastclip_v3
from dro_temp.recipes.networks import tempnet, tempnet_queued
from dro_temp.recipes.robust import drrho, isogclr, scent, sogclr

__all__ = [
    "cyclip",
    "drrho",
    "fastclip_v0",
    "fastclip_v1",
    "fastclip_v2",
    "fastclip_v3",
    "infonce",
    "isogclr",
    "scent",
    "siglip",
    "simclr",
    "sogclr",
    "tempnet",
    "tempnet_queued",
]
