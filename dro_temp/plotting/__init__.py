"""Pictures of temperatures and of training: functions that return a Figure, and a text as a web page.

Nothing global is changed. matplotlib is imported inside the functions, and `matplotlib.pyplot` not at all: no
backend is chosen, no figure is kept open, no default is touched. Save a figure with `figure.savefig("name.png")`.
"""

from dro_temp.plotting.concepts import temperature_by_concept, temperature_by_duplicates
from dro_temp.plotting.distributions import temperature_histogram, temperature_history
from dro_temp.plotting.images import image_extremes
from dro_temp.plotting.reliability import reliability_diagram
from dro_temp.plotting.token_page import TokenTemperatures, text_page, token_temperatures
from dro_temp.plotting.training import curves

__all__ = [
    "TokenTemperatures",
    "curves",
    "image_extremes",
    "reliability_diagram",
    "temperature_by_concept",
    "temperature_by_duplicates",
    "temperature_histogram",
    "temperature_history",
    "text_page",
    "token_temperatures",
]
