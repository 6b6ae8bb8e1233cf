"""Pictures of temperatures and of training: functions that return a Figure, and texts and images as web pages.

Figures need matplotlib, of the extra `recipes`, which is imported when a function is called; `matplotlib.pyplot` is
not imported at all: no backend is chosen, no figure stays open. Save one with `figure.savefig("name.png")`.
"""

from dro_temp.plotting.concepts import temperature_by_concept, temperature_by_duplicates
from dro_temp.plotting.image_grid.page import image_page
from dro_temp.plotting.images import image_extremes
from dro_temp.plotting.reliability import reliability_diagram
from dro_temp.plotting.token_page.page import text_page
from dro_temp.plotting.token_page.reading import TokenTemperatures, token_temperatures
from dro_temp.plotting.training import temperature_histogram, temperature_history, training_curves

__all__ = [
    "TokenTemperatures",
    "image_extremes",
    "image_page",
    "reliability_diagram",
    "temperature_by_concept",
    "temperature_by_duplicates",
    "temperature_histogram",
    "temperature_history",
    "text_page",
    "token_temperatures",
    "training_curves",
]
