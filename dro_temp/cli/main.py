"""`dro-temp`: what to do, then its options."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from dro_temp.cli.needs import needed

EXAMPLES = {
    "fit": """
examples
  dro-temp lm fit runs/first                              offline: a small GPT-2 on Python's own source, in minutes
  dro-temp lm fit runs/mine --model ./my-llama --data texts.jsonl --steps 5000
  dro-temp lm fit runs/mine --model ./my-llama --data allenai/c4:en --rho 8.5 --inputs '[logits]' --centred true
  dro-temp lm fit runs/joint --frozen false --host_lr 5e-5
  dro-temp lm fit runs/mine                               after an interruption: goes on where it stopped
  dro-temp lm fit --config runs/mine/config.yaml          the same run again
  accelerate launch -m dro_temp.cli lm fit runs/mine      several processes
""",
    "eval": """
examples
  dro-temp lm eval runs/first
  dro-temp lm eval runs/mine --data held-out.txt
  dro-temp lm eval runs/mine --tasks '[lambada_openai, piqa]'
""",
    "generate": """
examples
  dro-temp lm generate runs/first 'def read(path):'
  dro-temp lm generate runs/mine 'Once upon a time' --tokens 200 --temperature 0.9 --seed 1
""",
    "view": """
examples
  dro-temp lm view runs/first --out page.html
  dro-temp lm view runs/mine --text story.txt --out story.html
""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; the exit status."""
    jsonargparse = needed("jsonargparse")
    parser = _parser(jsonargparse)
    config = parser.parse_args(None if argv is None else list(argv))
    group = config[config.subcommand]
    name = group.subcommand
    chosen = {k: v for k, v in group[name].items() if k != "config"}
    try:
        _commands()[name](**chosen)
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        print(f"dro-temp lm {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was saved is safe, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _commands() -> dict[str, Callable[..., None]]:
    from dro_temp.cli.evaluate import evaluate
    from dro_temp.cli.fit import fit
    from dro_temp.cli.generate import generate
    from dro_temp.cli.view import view

    return {"fit": fit, "eval": evaluate, "generate": generate, "view": view}


def _parser(jsonargparse: Any) -> Any:
    raw = jsonargparse.DefaultHelpFormatter
    parser = jsonargparse.ArgumentParser(
        prog="dro-temp", description="Personalised temperatures for the models you have."
    )
    families = parser.add_subcommands(required=True)
    lm = jsonargparse.ArgumentParser(description="Language models: one temperature per token.")
    families.add_subcommand("lm", lm, help="language models")
    names = lm.add_subcommands(required=True)
    for name, command in _commands().items():
        assert command.__doc__ is not None
        about = command.__doc__.strip().splitlines()[0]
        sub = jsonargparse.ArgumentParser(
            description=about, epilog=EXAMPLES[name], formatter_class=_keeping_lines(raw)
        )
        sub.add_argument(
            "--config", action="config", help="a YAML file with these options, as every run leaves one"
        )
        sub.add_function_arguments(command, as_positional=True)
        names.add_subcommand(name, sub, help=about)
    return parser


def _keeping_lines(formatter: type) -> type:
    """Examples are to be read line by line."""

    def fill(self: Any, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))

    return type("_Lines", (formatter,), {"_fill_text": fill})
