"""Messages of the command line: every error is one sentence, of what was expected, what arrived, what to type."""

import difflib
import errno
import inspect
import os
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from dro_temp._optional import optional_module

#: In the environment: errors come with a traceback.
TRACEBACK = "DRO_TEMP_TRACEBACK"

_Parameters = Mapping[str, inspect.Parameter]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
#: In torch's errors when a file could not be written to its end.
_CUT_SHORT = ("PytorchStreamWriter failed", "unexpected pos", "No space left", "File too large")


def require(module: str) -> Any:
    """Import a package that only the command line uses; the error if it is missing says what installs it."""
    return optional_module(module, "which the command line needs")


def say(what: str) -> None:
    """Print, once where a launcher started several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(what)


def in_one_line(error: object, most: int | None = None) -> str:
    """What an error of another library says, without its line ends, and no more than so many characters of it."""
    return " ".join(str(error).split())[:most]


def sentence(error: BaseException) -> str:
    """An error of a command in one line."""
    message = in_one_line(error.args[0] if isinstance(error, KeyError) and error.args else error)
    full = next((e for e in _chain(error) if isinstance(e, OSError) and e.errno in _FULL), None)
    if full is not None or any(mark in message for mark in _CUT_SHORT):
        place, reason = ("a file of the run", message) if full is None else _place_and_reason(full)
        return (
            f"expected room on the disk for {place}, received: {reason}. Free some and type the same command again: "
            "it resumes from the last complete checkpoint."
        )
    if message.startswith("expected "):
        return message
    if isinstance(error, OSError) and error.errno is not None:
        place, reason = _place_and_reason(error)
        expected, instead = f"to read or write {place}", "Check the path."
        if error.errno in _CLOSED:
            expected, instead = (
                f"{place} to be open to this user",
                "Pass another path, or change its permissions.",
            )
        elif error.errno in _NO_FOLDER:
            expected, instead = f"a folder where {place} is to be", "Pass another path."
        return f"expected {expected}, received: {reason}. {instead}"
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"expected a model and a batch that fit into the memory of the device, received: {message} Pass a smaller "
            "--batch (for fit of language models with --accumulate, or a smaller --block), or for pairs --chunk 32."
        )
    return (
        "expected the command to end without an error, received one that was not foreseen: "
        f"{type(error).__name__}: {message.rstrip('.')}. Check the options; to see where it was raised, set "
        f"{TRACEBACK}=1 and type the command again."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _place_and_reason(error: OSError) -> tuple[str, str]:
    place = "a file" if error.filename is None else repr(str(error.filename))
    return place, error.strerror or type(error).__name__


class Commands(Protocol):
    """What can be typed after one word."""

    @property
    def commands(self) -> Mapping[str, object]:
        """Commands by name."""

    def parameters(self, command: str) -> _Parameters:
        """Their options; none where there is no such command."""


def parser_error(command: str, message: str, groups: Mapping[str, Commands]) -> str:
    """A message of the parser of `command`, "dro-temp lm fit" or one above it, in one sentence that begins with it."""
    message = in_one_line(message)
    missing = re.fullmatch(r"the following arguments are required: (.*)", message)
    names = [] if missing is None else missing[1].split(", ")
    if names and "." in names[0]:  # with the commands in front, lm.fit.output
        command = f"dro-temp {' '.join(names[0].split('.')[:-1])}"
    _, word, name = [*command.split(), "", ""][:3]
    parameters: _Parameters = groups[word].parameters(name) if word in groups else {}
    if names:
        values = " and ".join(name.rpartition(".")[2] for name in names)
        usage = f"{command} {_required(parameters)}"
        said = f"a value for {values}, received none. Type {usage}; --help has examples."
    elif lacking := re.fullmatch(
        r'expected "([\w.]+)" to be one of \{.*\}, but it was not provided\.?', message
    ):
        word = lacking[1].rpartition(".")[0]
        below = {word: groups[word]} if word in groups else groups
        typed = (f"dro-temp {word} and one of {', '.join(group.commands)}" for word, group in below.items())
        said = f"a command, received none. Type {', or '.join(typed)}."
    else:
        said = _of_values(command, message, parameters)
    return f"{command}: expected {said}"


def unknown_keys(command: str, file: str, keys: list[str], parameters: _Parameters) -> str:
    """The error for the keys of a file of options, given as --config, that a command does not take."""
    near = difflib.get_close_matches(keys[0].replace("-", "_"), parameters, n=1, cutoff=0.8)
    instead = f"Write {near[0]}?" if near else f"Remove what is not one of {', '.join(parameters)}."
    return (
        f"{command}: expected options of {command} in --config {file}, received {', '.join(keys)}. {instead}"
    )


def is_list(parameter: inspect.Parameter | None) -> bool:
    """Whether an option takes several values."""
    return parameter is not None and typing.get_origin(parameter.annotation) is tuple


def _of_values(command: str, message: str, parameters: _Parameters) -> str:
    help_ = f"Type {command} --help for {'examples' if parameters else 'what there is'}."
    if choice := re.fullmatch(r"argument subcommand: invalid choice: (.*) \(choose from (.*)\)", message):
        return f"one of {choice[2]}, received {choice[1]}. {help_}"
    if file := re.fullmatch(r'Parser key "(?:[\w.]+\.)?config": (.*)', message):
        return f"a YAML file of options for --config, received: {file[1].rstrip('.')}. Check the path."
    if valueless := re.fullmatch(r"argument --(?:[\w.]+\.)?(\w+): expected one argument", message):
        return _of_no_value(valueless[1], parameters)
    if union := re.fullmatch(
        r'(Parser key "[\w.]+"): .*Union subtypes.*?\[(.*?)\].*Given value: (.*)', message
    ):
        message = f"{union[1]}: Expected a {union[2].replace(', ', ' or ')}. Got value: {union[3]}"
    if typed := re.fullmatch(
        r'Parser key "(?:[\w.]+\.)?(\w+)": Expected an? (.+?)\. Got value: (.*)', message
    ):
        return _of_a_value(typed[1], typed[2], typed[3], parameters)
    if unknown := re.fullmatch(r"unrecognized arguments: (.*)", message, re.IGNORECASE):
        return _of_unknown(command, unknown[1], parameters)
    return f"options as --help lists them, received: {message.rstrip('.')}. {help_}"


def _of_no_value(option: str, parameters: _Parameters) -> str:
    parameter = parameters.get(option)
    if getattr(parameter, "annotation", None) is bool:
        return f"true or false for --{option}, received none. Type --{option} true."
    default = getattr(parameter, "default", None)
    instead = f"Type --{option} {default}, say."
    if default is None:
        instead = "Type --help for what the options take."
    elif isinstance(default, tuple):
        instead = f"Type --{option} '[{', '.join(default) or 'one, two'}]'{', say' if default else ''}."
    return f"a value for --{option}, received none. {instead}"


def _of_a_value(option: str, kind: str, value: str, parameters: _Parameters) -> str:
    kind = re.sub(r"<class '(\w+)'>", r"\1", kind).replace("typing.", "").replace("NoneType", "null")
    listed = is_list(parameters.get(option))
    if choices := re.fullmatch(r"Literal\[(.*)\]", kind):
        names = [name.strip("'\"") for name in choices[1].split(", ")]
        expected = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        instead = difflib.get_close_matches(value, names, n=1, cutoff=0.0)[0]
    elif kind == "bool":
        expected, instead = "true or false", "true"
    elif listed:
        expected, instead = "a list", value
    else:
        return f"{kind} for --{option}, received {value}. Type --help for what the options take."
    instead = f"'[{instead}]'" if listed else instead
    return f"{expected} for --{option}, received {value}. Type --{option} {instead}."


def _of_unknown(command: str, words: str, parameters: _Parameters) -> str:
    first = words.split()[0]
    if first.startswith("-") or not parameters:
        near = difflib.get_close_matches(first.partition("=")[0], [f"--{name}" for name in parameters], n=1)
        instead = f"Type {near[0]}?" if near else f"Type {command} --help for those that there are."
        return f"known options, received {words}. {instead}"
    if "prompt" in parameters:
        return (
            f"one prompt, received more words after it: {words}. Put the prompt in quotes: {command} RUN "
            "'several words'."
        )
    lists = [name for name, parameter in parameters.items() if is_list(parameter)]
    quoted = f", and a list as --{lists[0]} '[one, two]'" if lists else ""
    return (
        f"options after {_required(parameters)}, received {words}. Type each as --option value{quoted}; a value with "
        "spaces is put in quotes."
    )


def _required(parameters: _Parameters) -> str:
    """The arguments that the command requires, as they are typed."""
    names = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    return " ".join("'some text'" if name == "prompt" else name.upper() for name in names)
