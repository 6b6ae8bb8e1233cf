"""Checks of features, labels and temperatures, and what evaluations of features share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dro_temp._checks import check_count, check_floats, check_integers, check_several, check_tensor

BLOCK = 2**22  # numbers in memory at once, 16 MiB in float32
ROUNDING = 2.0**-20  # of a cosine; a float32 dot product of a few hundred numbers is exact to a tenth of it


def check_features(**named: Tensor) -> None:
    """Raise unless these are finite floating-point matrices with one row per item, all of one width."""
    for name, x in named.items():
        check_floats(name, x)
        if x.dim() != 2 or x.numel() == 0:
            raise ValueError(
                f"expected {name} [n d] with n > 0, received {list(x.shape)}. Pool to one vector per item."
            )
        bad = ~x.isfinite().all(dim=1)
        if bool(bad.any()):
            raise ValueError(
                f"expected finite {name}, received NaN or infinity in {int(bad.sum())} of {len(x)} rows, the first "
                f"is row {int(bad.nonzero()[0])}. Look at the encoder; leave rows out with {name}[{name}.isfinite()"
                ".all(1)]."
            )
    if len({x.shape[1] for x in named.values()}) > 1:
        widths = ", ".join(f"{name} {x.shape[1]}" for name, x in named.items())
        raise ValueError(
            f"expected features of one width, received {widths}. Encode all of them with one model."
        )


def check_labels(name: str, label: Tensor, n: int | None = None, classes: int | None = None) -> Tensor:
    """The labels as int64; raise unless these are n class numbers (at least one, if None) below `classes`."""
    check_tensor(name, label)
    if label.dim() != 1 or len(label) == 0 or n not in (None, len(label)):
        expected = f"{name} [n] with n > 0" if n is None else f"{name} [{n}]"
        raise ValueError(
            f"expected {expected}, one number per item, received {list(label.shape)}. Index items and labels alike."
        )
    check_integers(name, label)
    low, high = int(label.min()), int(label.max())
    if low < 0 or (classes is not None and high >= classes):
        upper = "" if classes is None else f" to {classes - 1}"
        raise ValueError(
            f"expected {name} from 0{upper}, received numbers from {low} to {high}. Number by place in the list."
        )
    return label.long()


def check_ks(ks: Sequence[int], most: float = float("inf"), what: str = "items") -> tuple[int, ...]:
    """The k's as ints; raise unless there is one, and each is in [1, most], the number of `what`."""
    check_several("ks", ks, "Pass ks=(1, 5).")
    if len(ks) == 0:
        raise ValueError("expected at least one k, received none. Pass ks=(1, 5).")
    counts = tuple(check_count("k", k) for k in ks)
    if max(counts) > most:
        raise ValueError(
            f"expected k of at most {most}, the number of {what}, received k={max(counts)}: every answer would be "
            f"right. Pass ks={tuple(k for k in counts if k <= most) or (1,)}."
        )
    return counts


def check_tau(tau: Tensor) -> Tensor:
    """Finite temperatures [n] as float64 on the CPU; those that differ by rounding of their dtype become equal."""
    check_floats("tau", tau)
    if tau.dim() != 1 or len(tau) == 0:
        raise ValueError(
            f"expected tau [n] with n > 0, received {list(tau.shape)}. Pass one temperature per row."
        )
    values = tau.detach().cpu().double()
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"expected finite temperatures, received NaN or infinity in {int((~values.isfinite()).sum())} of "
            f"{len(values)} rows. Leave those rows out: keep = tau.isfinite()."
        )
    spread, rounding = values.max() - values.min(), 4 * torch.finfo(tau.dtype).eps * values.abs().max()
    return torch.full_like(values, float(values[0])) if bool(spread <= rounding) else values


def unit(x: Tensor) -> Tensor:
    """Rows of length one, in float32 or better; a row of zeros stays one."""
    return torch.nn.functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)


def in_blocks(columns: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors, so many rows at a time that a matrix of these rows and `columns` fits into a block."""
    return list(zip(*(torch.split(x, max(1, BLOCK // columns)) for x in tensors), strict=True))


def expected_hits(scores: Tensor, label: Tensor, ks: Sequence[int], tie: float = 0.0) -> Tensor:
    """Probability [n len(ks)] that the label is among the k highest scores [n c], ties being broken at random.

    Scores that differ by no more than `tie` are tied.
    """
    right = scores.gather(1, label[:, None])
    above = (scores > right + tie).sum(dim=1)
    tied = (scores >= right - tie).sum(dim=1) - above  # the right one is one of them
    return torch.stack([((k - above) / tied).clamp(0, 1) for k in ks], dim=1)
