"""The options that this package adds to those of open_clip's main, and what of open_clip's cannot work with them."""

import argparse
import contextlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from dro_temp._checks import check_count, check_positive, check_real
from dro_temp._schemes import Option, make_objective, options_of, schemes
from dro_temp.integrations.open_clip.loss import FeaturesHost
from dro_temp.interfaces import HostAdapter
from dro_temp.objective import Objective

COMMAND = "python -m dro_temp.integrations.open_clip"
ABOUT = f"""\
open_clip's own training (open_clip_train.main) with the losses and temperatures of dro_temp. The options of open_clip
follow below and mean what they mean there.

examples
  {COMMAND} --scheme tempnet --rho 7 \\
      --train-data pairs.csv --csv-separator , --model ViT-B-32 --batch-size 256 --precision amp_bf16
  {COMMAND} --scheme isogclr --tau-min 0.01 --tau-max 0.1 \\
      --train-data 'shards/{{00000..00331}}.tar' --train-num-samples 2905954 --model RN50
  torchrun --nproc-per-node 8 -m dro_temp.integrations.open_clip --scheme sogclr --tau 0.03 --train-data pairs.csv
  {COMMAND} --name mine --resume latest ...    resumes; repeat the options of the run
  {COMMAND} --scheme infonce ...               one learned temperature, as in CLIP
"""


@dataclass(frozen=True)
class Options:
    """What the user chose of this package's options.

    Args:
        scheme: name of a recipe.
        recipe: values of the recipe's own options; those that were not typed are None or missing.
        tau_lr: learning rate of temperatures; None: that of the model at its highest.
        hold: share of the training in which temperatures stay at their start, in [0, 1); None: what the scheme needs.
        table_size: entries of the table that the keys of shards are hashed into; None: four for each sample.

    Raises:
        ValueError: a number out of range; an option that the scheme does not have, or that has no effect on it.
    """

    scheme: str = "tempnet"
    recipe: dict[str, float | None] = field(default_factory=dict)
    tau_lr: float | None = None
    hold: float | None = None
    table_size: int | None = None

    def __post_init__(self) -> None:
        if self.tau_lr is not None:
            check_positive("--tau-lr", self.tau_lr)
        if self.hold is not None:
            instead = "Type --hold 0.3 for three tenths of the training."
            check_real("--hold", self.hold, instead)
            if not 0.0 <= self.hold < 1.0:
                raise ValueError(f"expected --hold in [0, 1), received --hold {self.hold}. {instead}")
        if self.table_size is not None:
            check_count("--table-size", self.table_size)
        # A recipe checks its numbers when it is made. Tables take no memory on this device.
        with torch.device("meta"):
            made = self.objective(FeaturesHost(), num_samples=2**31, width=8, epochs=2, steps_per_epoch=2)
        trained = any(
            p.requires_grad for name, p in made.named_parameters() if name.partition(".")[0] != "host"
        )
        for name, value in (("--tau-lr", self.tau_lr), ("--hold", self.hold)):
            if value is not None and not trained:
                raise ValueError(
                    f"expected {name} for a scheme whose temperatures the optimizer trains, received {name} {value} "
                    f"with --scheme {self.scheme}. Leave {name} out, or choose another scheme, such as tempnet."
                )

    def objective(
        self, host: HostAdapter, *, num_samples: int, width: int, epochs: int, steps_per_epoch: int
    ) -> Objective:
        """The scheme over a host."""
        facts = {"num_samples": num_samples, "width": width, "epochs": epochs}
        facts |= {"steps_per_epoch": steps_per_epoch, "steps": epochs * steps_per_epoch}
        return make_objective(self.scheme, host, facts, self.recipe)

    def recorded(self) -> dict[str, Any]:
        """All of them as plain values, for open_clip's params.txt and for checkpoints."""
        every = dict.fromkeys(options_of()) | self.recipe
        rest = {"tau_lr": self.tau_lr, "hold": self.hold, "table_size": self.table_size}
        return {"scheme": self.scheme, **every, **rest}


def parsed(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """This package's options, and the words that are left for open_clip's parser."""
    known, rest = parser().parse_known_args(argv)
    values = vars(known)
    own = {name: values.pop(name) for name in ("scheme", "tau_lr", "hold", "table_size")}
    return Options(recipe=values, **own), rest


def parser() -> argparse.ArgumentParser:
    """The parser of this package's options."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(
                f"expected options as --help lists them, received: {message}. Type {COMMAND} --help."
            )

    made = Parser(
        prog=COMMAND,
        usage=f"{COMMAND} [--scheme NAME] [options]",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,  # an abbreviation may be meant for open_clip's parser
    )
    group = made.add_argument_group("dro_temp")
    group.add_argument(
        "--scheme",
        default="tempnet",
        metavar="NAME",
        choices=list(schemes()),
        help=f"a recipe of dro_temp: {', '.join(schemes())} (default: tempnet)",
    )
    for option in sorted(options_of().values(), key=lambda option: -len(option.defaults)):
        group.add_argument(
            f"--{option.name.replace('_', '-')}", type=option.type, metavar="X", help=_explained(option)
        )
    group.add_argument(
        "--tau-lr",
        type=float,
        metavar="X",
        help="learning rate of temperatures, which open_clip's schedule does not change (default: --lr)",
    )
    group.add_argument(
        "--hold",
        type=float,
        metavar="SHARE",
        help="share of the training in which temperatures stay at their start; then their rate rises, and in the last "
        "third it falls to 0 (default: 0.3 for tempnet_queued, unless with --skip-scheduler; else 0)",
    )
    group.add_argument(
        "--table-size",
        type=int,
        metavar="N",
        help="with shards: entries of the table that the names of samples are hashed into (default: 4 x "
        "--train-num-samples)",
    )
    return made


def _explained(option: Option) -> str:
    """What an option means, and its defaults, schemes of one default together."""
    text = option.help.rstrip(".").replace("`", "").replace("%", "%%")
    text = text.replace(" if None", " if left out").replace(", or a schedule", "")
    by_value = sorted(option.defaults.items(), key=lambda item: str(item[1]))
    parts = [
        f"{'left out' if value is None else f'{value:g}'} for {', '.join(name for name, _ in same)}"
        for value, same in itertools.groupby(by_value, key=lambda item: item[1])
    ]
    return f"{text} (default: {'; '.join(parts)})"


def help_text(their_parser: Callable[[Sequence[str]], Any]) -> str:
    """This package's options with examples, then what open_clip's parser says of its own."""
    theirs = io.StringIO()
    with contextlib.redirect_stdout(theirs), contextlib.suppress(SystemExit):
        their_parser(["--help"])
    return f"{parser().format_help()}\nopen_clip\n\n{theirs.getvalue()}"


def refuse(options: Options, theirs: argparse.Namespace) -> None:
    """Raise where an option of open_clip cannot work with this package's loss, or one of ours has no effect.

    Raises:
        ValueError: names the first such option, and what to type.
    """
    kind, ending = theirs.dataset_type, str(theirs.train_data).rpartition(".")[2]
    has_rows = kind in ("csv", "synthetic") or (kind == "auto" and ending in ("csv", "tsv"))
    if options.table_size is not None and has_rows:
        raise ValueError(
            f"expected --table-size with shards, received --table-size {options.table_size} and a data set whose rows "
            "are known by their place. Leave it out."
        )
    plain = "or train with open_clip's own loss: python -m open_clip_train.main"
    for received, instead in _impossible(options, theirs):
        raise ValueError(
            f"expected options of open_clip that its loop can use with another loss, received {received}. {instead}, "
            f"{plain}."
        )


def _impossible(options: Options, theirs: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What was typed, and what to do instead. A name that this version of open_clip does not have counts as unset."""

    def typed(name: str) -> Any:
        return getattr(theirs, name, None)

    if "coca" in str(typed("model")).lower():
        yield f"--model {theirs.model}, which has a caption loss", "Type another --model"
    for name in ("distill_model", "distill_pretrained"):
        if typed(name) is not None:
            yield f"--{name.replace('_', '-')}, a loss of its own", "Leave it out"
    if typed("siglip") and options.scheme != "siglip":
        yield f"--siglip with --scheme {options.scheme}", "Type --scheme siglip, leave --siglip out"
    for name, why in _NEVER.items():
        if typed(name):
            yield f"--{name.replace('_', '-')}, {why}", "Leave it out"
    if options.hold and typed("skip_scheduler"):
        yield "--skip-scheduler with --hold, which needs a schedule", "Leave one of the two out"


#: Options of open_clip, and what is in the way; the last is one of forks.
_NEVER = {
    "horovod": "under which temperatures would not be averaged over processes",
    "torchscript": "under which sample numbers do not reach the loss",
    "trace": "under which open_clip does not train",
    "loss_dist_impl": "which chooses among forms of another loss",
    "force_mrl_loss": "a loss of its own",
}
