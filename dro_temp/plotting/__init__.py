"""Pictures of temperatures and of training. Every function returns a Figure and changes nothing global.

matplotlib is imported inside the functions, and `matplotlib.pyplot` not at all: no backend is chosen, no
figure is kept open, no default is touched. Save with `figure.savefig("name.png")`.
"""

from dro_temp.plotting.curves import curves
from dro_temp.plotting.extremes import image_extremes
from dro_temp.plotting.histogram import temperature_histogram

__all__ = ["curves", "image_extremes", "temperature_histogram"]
