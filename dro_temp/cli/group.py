"""What the command line knows of one kind of model: its commands, their examples, and the folder of its runs."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from dro_temp.cli.run import Run

Parameters: TypeAlias = Mapping[str, inspect.Parameter]


@dataclass(frozen=True)
class Group:
    """Commands that are typed after one word: `dro-temp lm fit`, `dro-temp lm eval`, ...

    Args:
        about: what the group is for, in a few words.
        detail: the same in a sentence.
        commands: functions by what is typed; their arguments are the options, their docstrings the help.
        examples: lines below the help of each.
        run: the folder that `fit` writes and the others read.
    """

    about: str
    detail: str
    commands: Mapping[str, Callable[..., None]]
    examples: Mapping[str, str]
    run: type[Run]

    def parameters(self, command: str) -> Parameters:
        """The options of a command; none where there is no such command."""
        function = self.commands.get(command)
        return {} if function is None else inspect.signature(function).parameters
