"""Tables for people who read Markdown as plain text, and for notebooks."""

from collections.abc import Sequence
from html import escape


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left.

    Args:
        lines: the cells of each line, the header's first.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    filled = [[x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True))]
              for line in lines]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in (filled[0], ruler, *filled[1:]))


def html_table(lines: Sequence[Sequence[str]], before: str = "", after: str = "") -> str:
    """The same table as HTML, between two lines of text; whatever names hold is shown as text.

    Args:
        lines: the cells of each line, the header's first.
        before: text above the table.
        after: text below it.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        sides = ["left", *["right"] * (len(cells) - 1)]
        parts = (
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{''.join(parts)}</tr>"

    above, below = (f"<p>{escape(text)}</p>\n" if text else "" for text in (before, after))
    body = "\n".join(row(line, "td") for line in lines[1:])
    return (
        f"{above}<table>\n<thead>{row(lines[0], 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n{below}"
    )
