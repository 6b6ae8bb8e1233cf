"""Conventions of our docstrings that griffe does not read by itself.

`Example:` is a section of its own (griffe knows only `Examples:`), a comment `#: ...` above a class attribute
documents it, and some methods exist for Python or torch rather than for the reader.
"""

import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Function, Object

NOT_SHOWN = {"__getstate__", "__post_init__", "__repr__", "extra_repr"}


class OurDocstrings(Extension):
    """Reads `Example:` sections and `#:` comments."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section to what griffe knows."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)

    def on_function_instance(self, *, func: Function, **_: Any) -> None:
        """Hide a method by removing its docstring."""
        if func.name in NOT_SHOWN:
            func.docstring = None

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Use the comment lines above an attribute as its docstring."""
        if attr.docstring or not attr.lineno:
            return
        lines, last = attr.lines_collection[attr.filepath], attr.lineno - 1
        first = last
        while first > 0 and lines[first - 1].strip().startswith("#:"):
            first -= 1
        text = " ".join(line.strip().removeprefix("#:").strip() for line in lines[first:last])
        if text:
            attr.docstring = Docstring(text, lineno=first + 1, endlineno=last, parent=attr)
