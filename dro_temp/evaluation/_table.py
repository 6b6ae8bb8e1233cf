"""Tables for people who read Markdown as plain text."""

from collections.abc import Sequence


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
