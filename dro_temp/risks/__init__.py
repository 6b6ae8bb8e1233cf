"""Risks: each maps one loss per sample, of any PyTorch loss, to one number."""

from dro_temp.risks.group import GroupRisk
from dro_temp.risks.kl import KLRisk, TiltedRisk
from dro_temp.risks.recorded import RecordedRisk, Suspect
from dro_temp.risks.rising import RisingRadius
from dro_temp.risks.standalone import StandaloneRisk
from dro_temp.risks.weighted import ChiSquareRisk, CVaRRisk, MeanRisk, OptimisticRisk

__all__ = [
    "CVaRRisk",
    "ChiSquareRisk",
    "GroupRisk",
    "KLRisk",
    "MeanRisk",
    "OptimisticRisk",
    "RecordedRisk",
    "RisingRadius",
    "StandaloneRisk",
    "Suspect",
    "TiltedRisk",
]
