"""`dro-temp`: the command, then its options."""

import argparse
import gc
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import dro_temp
from dro_temp.cli.checkpoints import newest_complete
from dro_temp.cli.clip import CLIP
from dro_temp.cli.group import Group, Parameters
from dro_temp.cli.lm import LM
from dro_temp.cli.messages import TRACEBACK, is_list, parser_error, require, sentence, unknown_keys
from dro_temp.cli.run import Run
from dro_temp.cli.vision import VISION

GROUPS: dict[str, Group] = {"lm": LM, "clip": CLIP, "vision": VISION}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; the exit status."""
    command, options = "dro-temp", {}
    try:
        config = _parsed(_one_spelling(sys.argv[1:] if argv is None else argv))
        word = config.subcommand
        name = config[word].subcommand
        command = f"dro-temp {word} {name}"
        options = {k: v for k, v in config[word][name].items() if k != "config"}
        GROUPS[word].commands[name](**options)
        return 0
    except KeyboardInterrupt:
        # A bar, or the ^C of a terminal, may stand on the line.
        status, message = 130, f"\n{_stopped(options.get('output'))}"
    except Exception as error:
        if os.environ.get(TRACEBACK, "0") != "0":
            raise
        status, message = 2, f"{command}: {sentence(error)}"
    gc.collect()  # a progress bar that is still open would write over the sentence
    print(message, file=sys.stderr)
    return status


def _stopped(output: Path | None) -> str:
    """What an interruption leaves in the folder of a run, if one was being fitted."""
    saved = None if output is None else newest_complete(Run(output).checkpoints).folder
    if saved is None:
        return "stopped before anything was saved; the same command starts again"
    return f"stopped; {saved.name} is safe, and the same command resumes from it"


def _one_spelling(arguments: Sequence[str]) -> list[str]:
    """Options may be written --host-lr or --host_lr, and a list of one as a bare word.

    Help and examples write --host_lr, as config.yaml does, and '[word]'.
    """
    known = _parameters_of(arguments)
    spelled: list[str] = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        before = spelled[-1] if spelled else ""
        if option.startswith("--") and name in {*known, "print_config"}:
            value = _as_list(value) if equals and is_list(known.get(name)) else value
            argument = f"--{name}{equals}{value}"
        elif before.startswith("--") and is_list(known.get(before[2:])) and not argument.startswith("--"):
            argument = _as_list(argument)
        spelled.append(argument)
    return spelled


def _parameters_of(arguments: Sequence[str]) -> Parameters:
    """The options of the command that is typed; none where there is no such command."""
    words = [argument for argument in arguments if not argument.startswith("-")]
    return GROUPS[words[0]].parameters(words[1]) if len(words) > 1 and words[0] in GROUPS else {}


def _as_list(value: str) -> str:
    return value if value.strip().startswith(("[", "(")) else f"[{value}]"


def _parsed(arguments: list[str]) -> Any:
    """The options; those of `fit` that were not typed are those that the run in its folder was started with."""
    parser = _parser()
    if "fit" in arguments and "--config" in arguments:
        at = arguments.index("fit") + 1
        if not arguments[at].startswith("--"):  # a file of options that follows would name another folder
            arguments = [*arguments[:at], *arguments[at + 1 :], arguments[at]]
    config = parser.parse_args(arguments)
    word = config.subcommand
    given = config[word]
    if given.subcommand != "fit" or given.fit.config:
        return config
    started_with = GROUPS[word].run(given.fit.output).config
    if not started_with.is_file():
        return config
    at = arguments.index("fit") + 1
    return parser.parse_args([*arguments[:at], "--config", str(started_with), *arguments[at:]])


def _parser() -> Any:
    jsonargparse = require("jsonargparse")

    class Parser(jsonargparse.ArgumentParser):  # type: ignore[misc, name-defined]
        """Errors of one sentence."""

        def __init__(self, **options: Any) -> None:
            super().__init__(formatter_class=Lines, **options)

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if not self.exit_on_error:
                raise jsonargparse.ArgumentError(None, message) from ex
            parser = getattr(ex, "subcommand_parser", None) or self
            print(parser_error(parser.command(), message, GROUPS), file=sys.stderr)
            sys.exit(2)

        def command(self) -> str:
            """What is typed to reach this parser."""
            return re.sub(r" \[options\]| \{[\w,]*\} \.\.\.", "", str(self.prog))

    class Lines(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):  # type: ignore[misc, name-defined]
        """Examples keep their lines."""

    class Config(jsonargparse.ActionConfigFile):  # type: ignore[misc, name-defined]
        """A file of options; names its keys that the command does not take, which the parser would not."""

        def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
            super().__call__(parser, cfg, values, option_string)
            command = parser.command()
            _, word, name = command.split()
            parameters = GROUPS[word].parameters(name)
            if others := [key for key in vars(cfg) if key not in {*parameters, "config"}]:
                parser.exit(2, unknown_keys(command, values, others, parameters) + "\n")

    parser = Parser(
        prog="dro-temp",
        description="Personalised temperatures for the models you have.",
        version=dro_temp.__version__,
    )
    words = parser.add_subcommands(required=True)
    for word, group in GROUPS.items():
        below = Parser(description=group.detail)
        words.add_subcommand(word, below, help=group.about)
        names = below.add_subcommands(required=True)
        for name, command in group.commands.items():
            about = str(command.__doc__).strip().splitlines()[0]
            sub = Parser(description=about, epilog=group.examples[name])
            from_run = "with these options: every run leaves one in its folder, config.yaml"
            what = from_run if name == "fit" else "with options of this command"
            sub.add_argument("--config", action=Config, help=f"a YAML file {what}")
            sub.add_function_arguments(command, as_positional=True)
            names.add_subcommand(name, sub, help=about)
    return parser
