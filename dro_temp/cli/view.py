"""See a run's temperatures."""

from pathlib import Path

from dro_temp._files import check_writable, whole_file
from dro_temp.cli.options import check_least
from dro_temp.cli.run import Run
from dro_temp.cli.text import documents
from dro_temp.datasets import PythonText
from dro_temp.hosts import CausalLM
from dro_temp.plotting import text_page, token_temperatures


def view(
    run: Path, text: Path | None = None, out: Path | None = None, characters: int = 4000, k: int = 5
) -> None:
    """Write one web page that shows the temperature of every token of a text; it needs no network.

    Args:
        run: the folder that `fit` made.
        text: a file; by default a file of Python's source that was not trained on.
        out: the page; by default `page.html` in the run's folder.
        characters: of the text that are shown.
        k: candidates shown for each token, before and after its temperature.
    """
    check_least("characters", characters)
    check_least("k", k)
    page = out or run / "page.html"
    if page.is_dir():
        raise ValueError(
            f"expected a file to write the page into, received the folder {str(page)!r}. Pass --out."
        )
    check_writable(page.parent)
    model, tokenizer, tempnet, options = Run(run).load()
    if text is None:
        held_out = PythonText("test")
        shown, title = held_out.texts[0], held_out.files[0]
    else:
        if not text.is_file():
            raise ValueError(
                f"expected a text file, received {str(text)!r}, which is not there. Check --text."
            )
        shown, title = "\n\n".join(documents(str(text))), text.name
    host = CausalLM(model, frozen=True)
    read = token_temperatures(host, tokenizer, tempnet, shown[:characters], k=k, window=options["block"])
    page.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(page) as file:
        file.write(text_page(*read, title=title).encode())
    print(f"wrote {page}; open it in a browser")
