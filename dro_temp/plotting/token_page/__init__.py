"""A text with a temperature for every token, as one web page that needs nothing else."""

from dro_temp.plotting.token_page.page import text_page
from dro_temp.plotting.token_page.reading import TokenTemperatures, token_temperatures

__all__ = ["TokenTemperatures", "text_page", "token_temperatures"]
