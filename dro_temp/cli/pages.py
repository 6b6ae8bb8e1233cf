"""The files that `eval` and `view` write."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from dro_temp._files import check_writable, whole_file


def page_path(run: Path, out: Path | None) -> Path:
    """The page's file; raises where none can be written."""
    page = out or run / "page.html"
    if page.is_dir():
        raise ValueError(
            f"expected a file to write the page into, received the folder {str(page)!r}. Pass --out."
        )
    check_writable(page.parent)
    return page


def write_page(page: Path, html: str) -> None:
    """Write it as a whole, and say so."""
    page.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(page) as file:
        file.write(html.encode())
    print(f"wrote {page}; open it in a browser")


def write_table(path: Path, titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file as a whole."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(titles)
    table.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())
