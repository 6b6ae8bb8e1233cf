"""`dro-temp`: what to do, then its options."""

import difflib
import gc
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import dro_temp
from dro_temp.cli.errors import TRACEBACK, sentence
from dro_temp.cli.needs import needed
from dro_temp.cli.run import Run

EXAMPLES = {
    "fit": """
examples
  dro-temp lm fit runs/first                              offline: a small GPT-2 on Python's own source, in minutes
  dro-temp lm fit runs/mine --model ./my-llama --data texts.jsonl --steps 5000
  dro-temp lm fit runs/mine --model ./my-llama --data allenai/c4:en --rho 8.5 --inputs '[logits]' --centred true
  dro-temp lm fit runs/joint --frozen false --host_lr 5e-5
  dro-temp lm fit runs/mine                               after an interruption: goes on where it stopped
  dro-temp lm fit runs/mine --steps 9000                  after the end: trains for longer
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
    arguments = sys.argv[1:] if argv is None else list(argv)
    command = "dro-temp"
    try:
        config = _parsed(_one_spelling(arguments))
        group = config[config.subcommand]
        name = group.subcommand
        command = f"dro-temp lm {name}"
        _commands()[name](**{k: v for k, v in group[name].items() if k != "config"})
    except KeyboardInterrupt:
        print("stopped; what was saved is safe, and the same command goes on from there", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get(TRACEBACK, "0") != "0":
            raise
        told = f"{command}: {sentence(error)}"
    else:
        return 0
    gc.collect()  # a progress bar that is still open would write over the sentence
    print(told, file=sys.stderr)
    return 2


def _commands() -> dict[str, Callable[..., None]]:
    from dro_temp.cli.evaluate import evaluate
    from dro_temp.cli.fit import fit
    from dro_temp.cli.generate import generate
    from dro_temp.cli.view import view

    return {"fit": fit, "eval": evaluate, "generate": generate, "view": view}


def _parsed(arguments: list[str]) -> Any:
    """The options; those of `fit` that were not typed are as the run that is there was started with."""
    parser = _parser(needed("jsonargparse"))
    config = parser.parse_args(arguments)
    group = config[config.subcommand]
    if group.subcommand != "fit" or group.fit.config:
        return config
    started_with = Run(Path(group.fit.output)).config
    if not started_with.is_file():
        return config
    at = arguments.index("fit") + 1
    return parser.parse_args([*arguments[:at], "--config", str(started_with), *arguments[at:]])


def _one_spelling(arguments: Sequence[str]) -> list[str]:
    """Options may be written --host-lr or --host_lr; help and examples write the second, as config.yaml does."""
    known = {name for command in _commands().values() for name in inspect.signature(command).parameters}
    spelled = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        ours = option.startswith("--") and name in {*known, "print_config"}
        spelled.append(f"--{name}{equals}{value}" if ours else argument)
    return spelled


def _parser(jsonargparse: Any) -> Any:
    class Parser(jsonargparse.ArgumentParser):  # type: ignore[misc, name-defined]
        """Errors of one sentence, examples that keep their lines."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if not self.exit_on_error:
                raise jsonargparse.ArgumentError(None, message) from ex
            parser = getattr(ex, "subcommand_parser", None) or self
            command = parser.prog.replace(" [options]", "").replace(" {lm} ...", "")
            print(f"{command}: {_of_options(message)}", file=sys.stderr)
            sys.exit(2)

    options = {"formatter_class": _keeping_lines(jsonargparse.DefaultHelpFormatter)}
    parser = Parser(
        prog="dro-temp",
        description="Personalised temperatures for the models you have.",
        version=dro_temp.__version__,
        **options,
    )
    families = parser.add_subcommands(required=True)
    lm = Parser(description="Language models: one temperature per token.", **options)
    families.add_subcommand("lm", lm, help="language models")
    names = lm.add_subcommands(required=True)
    for name, command in _commands().items():
        assert command.__doc__ is not None
        about = command.__doc__.strip().splitlines()[0]
        sub = Parser(description=about, epilog=EXAMPLES[name], **options)
        sub.add_argument(
            "--config", action="config", help="a YAML file with these options, as every run leaves one"
        )
        sub.add_function_arguments(command, as_positional=True)
        names.add_subcommand(name, sub, help=about)
    return parser


def _of_options(message: str) -> str:
    """What the parser says of wrong options, in one sentence of three parts."""
    told = " ".join(message.split())
    choice = re.fullmatch(r"argument subcommand: invalid choice: (.*) \(choose from (.*)\)", told)
    if choice is not None:
        return f"expected one of {choice[2]}, received {choice[1]}. Type --help for examples."
    nothing = re.fullmatch(r'expected "[\w.]+" to be one of \{(.*)\}, but it was not provided\.?', told)
    if nothing is not None:
        return f"expected one of {nothing[1].replace(',', ', ')}, received none. Type --help for examples."
    file = re.fullmatch(r'Parser key "(?:[\w.]+\.)?config": (.*)', told)
    if file is not None:
        return (
            f"expected a YAML file of options for --config, received: {file[1].rstrip('.')}. Check the path."
        )
    either = re.fullmatch(r'Parser key "([\w.]+)": .*Union subtypes.*?\[(.*?)\].*Given value: (.*)', told)
    if either is not None:
        told = (
            f'Parser key "{either[1]}": Expected a {either[2].replace(", ", " or ")}. Got value: {either[3]}'
        )
    typed = re.fullmatch(r'Parser key "([\w.]+)": Expected an? (.+?)\. Got value: (.*)', told)
    if typed is not None:
        option, kind, value = typed[1].rpartition(".")[2], typed[2], typed[3]
        kind = re.sub(r"<class '(\w+)'>", r"\1", kind).replace("typing.", "").replace("NoneType", "null")
        return f"expected {kind} for --{option}, received {value}. Type --help for what the options take."
    unknown = re.fullmatch(r"unrecognized arguments: (.*)", told, re.IGNORECASE)
    if unknown is not None:
        names = [f"--{name}" for f in _commands().values() for name in inspect.signature(f).parameters]
        near = difflib.get_close_matches(unknown[1].split()[0].partition("=")[0], names, n=1)
        instead = f"Type {near[0]}?" if near else "Type --help for those that there are."
        return f"expected known options, received {unknown[1]}. {instead}"
    missing = re.fullmatch(r"the following arguments are required: (.*)", told)
    if missing is not None:
        wanted = missing[1].rpartition(".")[2]
        return f"expected a value for {wanted}, received none. Type --help for examples."
    return f"expected options as --help lists them, received: {told.rstrip('.')}. Type --help for examples."


def _keeping_lines(formatter: type) -> type:
    """Examples are to be read line by line."""

    def fill(self: Any, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))

    return type("_Lines", (formatter,), {"_fill_text": fill})
