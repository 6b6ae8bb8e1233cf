"""Ranges of options, checked in the words of the command line."""

import math
from collections.abc import Mapping
from typing import Any

from dro_temp._checks import check_count, check_positive
from dro_temp.cli.options import check_seed, check_temperatures


def check_fit(options: Mapping[str, Any]) -> None:
    """Raise where an option of `fit` is out of range: before a model is loaded, or a folder made."""
    for name in ("steps", "batch", "accumulate", "save_every"):
        check_count(f"--{name}", options[name])
    check_count("--block", options["block"], minimum=2)  # one token to read and one to predict
    for name in ("lr", "host_lr"):
        check_positive(f"--{name}", options[name])
    check_seed(options["seed"])
    check_temperatures(options["tau_min"], options["tau_max"])
    if options["objective"] in ("selective_smoothing", "self_weighted") and not options["frozen"]:
        raise ValueError(
            f"expected a frozen model with --objective {options['objective']}, which teaches temperatures alone, "
            "received --frozen false. Leave --frozen out, or pass --objective likelihood."
        )
    if options["rho"] is not None:
        check_positive("--rho", options["rho"])
    inputs = options["inputs"]
    if not inputs or len(set(inputs)) < len(inputs):
        raise ValueError(
            f"expected one or several different --inputs, received {list(inputs)}. Pass --inputs "
            "'[hidden, statistics]'."
        )
    if options["centred"] and "logits" not in inputs:
        raise ValueError(
            f"expected logits among the --inputs with --centred true, received {list(inputs)}, which it does not "
            "change. Leave --centred out, or pass --inputs '[logits]'."
        )


def check_radius(rho: float, outcomes: int) -> None:
    """Raise unless some distribution over so many outcomes is farther from uniform than this radius."""
    largest = math.log(outcomes)
    if not 0 < rho < largest:
        raise ValueError(
            f"expected rho between 0 and log(vocabulary) = {largest:.3f}, received --rho {rho}. Beyond, every "
            "temperature would go to --tau_min; leave --rho out to take the one that fits the model."
        )


def check_positions(config: Any, block: int) -> None:
    """Raise where blocks of so many tokens are longer than what a model of this config reads."""
    positions = _positions(config)
    if positions is not None and positions < block:
        raise ValueError(
            f"expected blocks of at most {positions} tokens, as many as the model has positions, received --block "
            f"{block}. Pass --block {positions} or less."
        )


def check_room(config: Any, prompt: int, tokens: int) -> None:
    """Raise where a prompt and the tokens that are to follow it exceed the positions of a model of this config.

    A model that rotates by position (`rope_parameters`) has no such limit.
    """
    positions = _positions(config)
    if positions is None or getattr(config, "rope_parameters", None) or prompt + tokens <= positions:
        return
    room = positions - prompt
    instead = f"Pass --tokens {room} or less" if room > 0 else "Pass a shorter prompt"
    raise ValueError(
        f"expected a prompt and --tokens of at most {positions} tokens together, as many as the model has positions, "
        f"received a prompt of {prompt} and --tokens {tokens}. {instead}."
    )


def _positions(config: Any) -> int | None:
    """How many tokens a model reads, if its config says; transformers aliases n_positions to this name."""
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None
