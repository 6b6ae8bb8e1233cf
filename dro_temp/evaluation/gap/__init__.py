"""How near do predicted temperatures come to the best one of every row? The amortisation gap."""

from dro_temp.evaluation.gap.amortisation import AmortisationGap, TemperatureSpread, amortisation_gap
from dro_temp.evaluation.gap.over_training import GapLog

__all__ = ["AmortisationGap", "GapLog", "TemperatureSpread", "amortisation_gap"]
