"""Formulas as MathML, converted when the site is built: pages need no network and no JavaScript.

`pymdownx.arithmatex` marks formulas in pages and docstrings alike; this hook converts them.
"""

import html
import logging
import re
from typing import Any
from xml.etree.ElementTree import Element, tostring

from latex2mathml.converter import convert_to_element

log = logging.getLogger("mkdocs.hooks.mathml")  # a child of "mkdocs": its warnings fail a strict build

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\s*\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]\s*</(?P=tag)>', re.S
)
# Commands that the converter does not support, or draws badly, and their replacements.
MACROS = {r"\arg\min": r"\argmin", r"\arg\max": r"\argmax", r"\!": "", r"\bigl": r"\big", r"\bigr": r"\big"}
LIMITS = {"max", "min", "sup", "inf", "arg\u2009min", "arg\u2009max"}
THIN = "0.167em"


def to_mathml(latex: str, *, block: bool) -> str:
    """MathML of a formula; raises ValueError if the converter does not support it."""
    for command, meaning in MACROS.items():
        latex = re.sub(re.escape(command) + r"(?![A-Za-z])", lambda _, m=meaning: m + " ", latex)
    depth = 0
    for brace in re.findall(r"\\[{}]|[{}]", latex):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            break
    if depth != 0:
        raise ValueError("unbalanced braces")
    try:
        root = convert_to_element(latex, display="block" if block else "inline")
    except Exception as error:  # the converter has a dozen exception types without a common base
        raise ValueError(f"{type(error).__name__} {error}".strip()) from error
    for element in root.iter():
        # The converter leaves unknown commands as text.
        text = html.unescape(element.text or "")
        if "\\" in text or text.strip() == "&":
            raise ValueError(f"unknown command or misplaced {text!r}")
        element.text = text or None
    _as_tex_spaces(root)
    _join_letters(root)
    _set_functions(root, block=block)
    return tostring(root, encoding="unicode")


def _as_tex_spaces(root: Element) -> None:
    """No space around a slash; symbols that TeX treats as letters become identifiers."""
    for element in root.iter("mo"):
        if element.text == "/":
            element.set("lspace", "0")
            element.set("rspace", "0")
        elif element.text in ("\u221e", "\u2202"):  # infinity, partial
            element.tag = "mi"


def _join_letters(root: Element) -> None:
    """Join upright letters, such as those of `mathrm{KL}`, into one word."""
    for element in root.iter("mrow"):
        letters = list(element)
        if len(letters) > 1 and all(e.tag == "mi" and e.get("mathvariant") == "normal" for e in letters):
            word = "".join(e.text or "" for e in letters)
            for letter in letters:
                element.remove(letter)
            element.tag, element.text = "mo", word


def _set_functions(root: Element, *, block: bool) -> None:
    """Thin spaces around function names, and limits below them in displayed formulas, as TeX sets them."""
    for parent in list(root.iter()):
        children = list(parent)
        for i, child in enumerate(children):
            base = child[0] if child.tag in ("msub", "msup", "msubsup") else child
            if not _is_function(base):
                continue
            before = children[i - 1] if i > 0 else None
            after = children[i + 1] if i + 1 < len(children) else None
            base.tag = "mo"
            base.set("lspace", "0" if before is None or _first(before).tag == "mo" else THIN)
            base.set("rspace", "0" if after is None or _first(after).tag == "mo" else THIN)
            if block and child.tag == "msub" and base.text in LIMITS:
                child.tag = "munder"


def _is_function(element: Element) -> bool:
    text = (element.text or "").replace("\u2009", "")
    return element.tag in ("mi", "mo") and len(text) > 1 and text.isascii() and text.isalpha()


def _first(element: Element) -> Element:
    """First element of a group; for a row in parentheses, the parenthesis."""
    while element.tag == "mrow" and len(element):
        element = element[0]
    return element


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Replace every formula of a rendered page."""

    def replace(match: re.Match[str]) -> str:
        latex = html.unescape(match["latex"]).strip()
        try:
            mathml = to_mathml(latex, block=match["open"] == "[")
        except ValueError as error:
            log.warning(
                "%s: expected LaTeX that latex2mathml can convert, received %s (%s). Rewrite the formula, or "
                "teach docs/_hooks/mathml.py the command.",
                page.file.src_path,
                latex,
                error,
            )
            return match[0]
        return f'<{match["tag"]} class="formula">{mathml}</{match["tag"]}>'

    return FORMULA.sub(replace, content)
