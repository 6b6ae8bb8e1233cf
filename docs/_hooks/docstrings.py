"""Habits of our docstrings that the documentation reader does not know.

`Example:` is a section of its own (griffe knows only `Examples:`), a comment `#: ...` above a class attribute
documents it, and some methods are there for Python or torch rather than for the reader.
"""

import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Function, Object

NOT_SHOWN = {"__getstate__", "__post_init__", "__repr__", "extra_repr"}


class OurDocstrings(Extension):
    """Reads `Example:` sections and `#:` comments."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)

    def on_function_instance(self, *, func: Function, **_: Any) -> None:
        """Without a docstring it is not shown."""
        if func.name in NOT_SHOWN:
            func.docstring = None

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Take the comment lines right above an attribute as its docstring."""
        if attr.docstring or not attr.lineno:
            return
        lines, last = attr.lines_collection[attr.filepath], attr.lineno - 1
        first = last
        while first > 0 and lines[first - 1].strip().startswith("#:"):
            first -= 1
        text = " ".join(line.strip().removeprefix("#:").strip() for line in lines[first:last])
        if text:
            attr.docstring = Docstring(text, lineno=first + 1, endlineno=last, parent=attr)
