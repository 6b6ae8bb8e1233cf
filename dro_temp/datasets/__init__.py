"""Data that is on every machine, and wrappers that number samples.

Nothing is downloaded, and importing this package imports no optional package.
"""

from dro_temp.datasets.blocks import token_blocks
from dro_temp.datasets.glyph_scripts import GlyphScripts
from dro_temp.datasets.glyphs import GlyphCaptions
from dro_temp.datasets.indexed import Indexed
from dro_temp.datasets.python_text import PythonText
from dro_temp.datasets.sample_numbers import SampleTable
from dro_temp.datasets.words import WordTokenizer

__all__ = [
    "GlyphCaptions",
    "GlyphScripts",
    "Indexed",
    "PythonText",
    "SampleTable",
    "WordTokenizer",
    "token_blocks",
]
