"""What the parser says of wrong options, in the words of the command line."""

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Commands = Mapping[str, Callable[..., None]]


def refusal(command: str, message: str, commands: Commands) -> tuple[str, str]:
    """The command that is spoken of, and one sentence of three parts.

    Args:
        command: whose parser speaks, "dro-temp lm fit" or one above it.
        message: what it says.
        commands: those of `dro-temp lm`.
    """
    told = " ".join(message.split())
    if re.fullmatch(r'expected "[\w.]+" to be one of \{.*\}, but it was not provided\.?', told):
        return (
            command,
            f"expected a command, received none. Type dro-temp lm and one of {', '.join(commands)}.",
        )
    missing = re.fullmatch(r"the following arguments are required: (.*)", told)
    if missing is not None:
        names = [word.split(".") for word in missing[1].split(", ")]
        if len(names[0]) > 1:  # with the commands in front, lm.fit.output
            command = f"dro-temp {' '.join(names[0][:-1])}"
        values = " and ".join(name[-1] for name in names)
        words = " ".join(_words(command, commands))
        return (
            command,
            f"expected a value for {values}, received none. Type {command} {words}; --help has examples.",
        )
    return command, _of_values(command, told, commands)


def unknown_keys(command: str, file: str, keys: Sequence[Any], options: Sequence[str]) -> str | None:
    """What a file of options holds that the command does not take, as one sentence; None if nothing.

    Args:
        command: "dro-temp lm eval".
        file: given as --config.
        keys: of the file.
        options: that the command takes.
    """
    others = [str(key) for key in keys if key not in options]
    if not others:
        return None
    near = difflib.get_close_matches(others[0].replace("-", "_"), options, n=1, cutoff=0.8)
    instead = f"Write {near[0]}?" if near else f"Remove what is not one of {', '.join(options)}."
    return f"expected options of {command} in --config {file}, received {', '.join(others)}. {instead}"


def _of_values(command: str, told: str, commands: Commands) -> str:
    parameters = _parameters(command, commands)
    choice = re.fullmatch(r"argument subcommand: invalid choice: (.*) \(choose from (.*)\)", told)
    if choice is not None:
        return f"expected one of {choice[2]}, received {choice[1]}. {_help(command, commands)}"
    file = re.fullmatch(r'Parser key "(?:[\w.]+\.)?config": (.*)', told)
    if file is not None:
        return (
            f"expected a YAML file of options for --config, received: {file[1].rstrip('.')}. Check the path."
        )
    valueless = re.fullmatch(r"argument --([\w.]+): expected one argument", told)
    if valueless is not None:
        option = valueless[1].rpartition(".")[2]
        kind = getattr(parameters.get(option), "annotation", None)
        return (
            f"expected true or false for --{option}, received none. Type --{option} true."
            if kind is bool
            else f"expected a value for --{option}, received none. {_example(option, parameters)}"
        )
    either = re.fullmatch(r'Parser key "([\w.]+)": .*Union subtypes.*?\[(.*?)\].*Given value: (.*)', told)
    if either is not None:
        told = (
            f'Parser key "{either[1]}": Expected a {either[2].replace(", ", " or ")}. Got value: {either[3]}'
        )
    typed = re.fullmatch(r'Parser key "([\w.]+)": Expected an? (.+?)\. Got value: (.*)', told)
    if typed is not None:
        return _of_a_value(typed[1].rpartition(".")[2], typed[2], typed[3], parameters)
    unknown = re.fullmatch(r"unrecognized arguments: (.*)", told, re.IGNORECASE)
    if unknown is not None:
        return _of_unknown(command, unknown[1], commands)
    return f"expected options as --help lists them, received: {told.rstrip('.')}. {_help(command, commands)}"


def _of_a_value(option: str, kind: str, value: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    kind = re.sub(r"<class '(\w+)'>", r"\1", kind).replace("typing.", "").replace("NoneType", "null")
    listed = is_list(parameters.get(option))
    choices = re.fullmatch(r"Literal\[(.*)\]", kind)
    if choices is not None:
        names = [name.strip("'\"") for name in choices[1].split(", ")]
        near = difflib.get_close_matches(value, names, n=1, cutoff=0.0)[0]
        instead = f"'[{near}]'" if listed else near
        return f"expected {_or(names)} for --{option}, received {value}. Type --{option} {instead}."
    if kind == "bool":
        return f"expected true or false for --{option}, received {value}. Type --{option} true."
    if listed:
        return f"expected a list for --{option}, received {value}. Type --{option} '[{value}]'."
    return f"expected {kind} for --{option}, received {value}. Type --help for what the options take."


def _of_unknown(command: str, words: str, commands: Commands) -> str:
    parameters = _parameters(command, commands)
    first = words.split()[0]
    if first.startswith("-") or not parameters:
        near = difflib.get_close_matches(first.partition("=")[0], [f"--{name}" for name in parameters], n=1)
        instead = f"Type {near[0]}?" if near else f"Type {command} --help for those that there are."
        return f"expected known options, received {words}. {instead}"
    if "prompt" in parameters:
        return (
            f"expected one prompt, received more words after it: {words}. Put the prompt in quotes: {command} RUN "
            "'several words'."
        )
    lists = [name for name, parameter in parameters.items() if is_list(parameter)]
    quoted = f", and a list as --{lists[0]} '[one, two]'" if lists else ""
    return (
        f"expected options after {' '.join(_words(command, commands))}, received {words}. Type each as --option "
        f"value{quoted}; a value with spaces is put in quotes."
    )


def is_list(parameter: inspect.Parameter | None) -> bool:
    """Whether an option takes several values."""
    return parameter is not None and typing.get_origin(parameter.annotation) is tuple


def _parameters(command: str, commands: Commands) -> Mapping[str, inspect.Parameter]:
    called = commands.get(command.rpartition(" ")[2])
    return {} if called is None else inspect.signature(called).parameters


def _words(command: str, commands: Commands) -> list[str]:
    """What the command cannot do without, as it is typed."""
    parameters = _parameters(command, commands)
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    return ["'some text'" if name == "prompt" else name.upper() for name in needed]


def _example(option: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    default = getattr(parameters.get(option), "default", None)
    if default == ():
        return f"Type --{option} '[one, two]'."
    if default is None:
        return "Type --help for what the options take."
    value = f"'[{', '.join(default)}]'" if isinstance(default, tuple) else default
    return f"Type --{option} {value}, say."


def _help(command: str, commands: Commands) -> str:
    what = "for examples" if _parameters(command, commands) else "for what there is"
    return f"Type {command} --help {what}."


def _or(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
