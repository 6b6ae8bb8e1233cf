"""Data without a download, and wrappers that number samples. Importing this imports no optional package."""

from dro_temp.datasets.glyph_scripts import GlyphScripts
from dro_temp.datasets.glyphs import GlyphCaptions
from dro_temp.datasets.groups import group_numbers, merged_groups
from dro_temp.datasets.indexed import Indexed, SampleTable
from dro_temp.datasets.python_text import PythonText
from dro_temp.datasets.tokens import WordTokenizer, token_blocks

__all__ = [
    "GlyphCaptions",
    "GlyphScripts",
    "Indexed",
    "PythonText",
    "SampleTable",
    "WordTokenizer",
    "group_numbers",
    "merged_groups",
    "token_blocks",
]
