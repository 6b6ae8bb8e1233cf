"""What evaluations of frozen features share: checks, unit vectors, and right answers among ties."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dro_temp._checks import check_count, check_floats, check_integers, check_several

BLOCK = 2**22  # numbers held at once, 16 MiB in float32
ROUNDING = 2.0**-20  # of a cosine; a float32 dot product of a few hundred numbers is exact to a tenth of it


def check_features(**named: Tensor) -> None:
    """Raise unless these are finite matrices with one row per item, all of one width.

    Raises:
        TypeError: no floating point numbers.
        ValueError: not two-dimensional, empty, of two widths, or not finite.
    """
    for name, x in named.items():
        check_floats(name, x)
        if x.dim() != 2 or x.numel() == 0:
            raise ValueError(
                f"expected {name} [n d], one row per item, received {list(x.shape)}. Pool to one vector per item, and "
                "pass at least one item."
            )
        bad = ~x.isfinite().all(dim=1)
        if bool(bad.any()):
            raise ValueError(
                f"expected finite {name}, received NaN or infinity in {int(bad.sum())} of {len(x)} rows, the first "
                f"is row {int(bad.nonzero()[0])}. Look at the encoder; leave rows out with {name}[{name}.isfinite()"
                ".all(1)]."
            )
    if len({x.shape[1] for x in named.values()}) > 1:
        raise ValueError(
            f"expected features of one width, received {_listed({n: x.shape[1] for n, x in named.items()})}. "
            "Encode all of them with one model."
        )


def check_labels(name: str, label: Tensor, n: int, classes: int | None = None) -> Tensor:
    """The labels as int64, or an error unless these are n class numbers below `classes`.

    Raises:
        TypeError: no integers.
        ValueError: another number of them, or a class that does not exist.
    """
    check_integers(name, label)
    if label.shape != (n,):
        raise ValueError(
            f"expected {name} [{n}], one number per item, received {list(label.shape)}. Index items and labels alike."
        )
    low, high = int(label.min()), int(label.max())
    if low < 0 or (classes is not None and high >= classes):
        upper = "" if classes is None else f" to {classes - 1}"
        raise ValueError(
            f"expected {name} from 0{upper}, received numbers from {low} to {high}. Number by place in the list, "
            "counted from 0."
        )
    return label.long()


def check_ks(ks: Sequence[int], most: int, what: str) -> tuple[int, ...]:
    """The k's as ints, or an error unless each is in [1, most].

    Raises:
        TypeError: a k that is no int.
        ValueError: no k, one below 1, or one above the number of `what`.
    """
    check_several("ks", ks, "Pass ks=(1, 5).")
    if len(ks) == 0:
        raise ValueError("expected at least one k, received none. Pass ks=(1,).")
    counts = tuple(check_count("k", k) for k in ks)
    if max(counts) > most:
        raise ValueError(
            f"expected k of at most {most}, the number of {what}, received k={max(counts)}: every answer would be "
            f"right. Pass ks={tuple(k for k in counts if k <= most) or (1,)}."
        )
    return counts


def unit(x: Tensor) -> Tensor:
    """Rows of length one, in float32 or better; a row of zeros stays one."""
    return torch.nn.functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)


def expected_hits(scores: Tensor, label: Tensor, ks: Sequence[int], tie: float = 0.0) -> Tensor:
    """Chance that the right class is among the k highest scores, [n len(ks)], where ties are broken by lot.

    Args:
        scores: [n c].
        label: [n].
        ks: how many are looked at.
        tie: scores that differ by no more are tied.
    """
    right = scores.gather(1, label[:, None])
    above = (scores > right + tie).sum(dim=1)
    tied = (scores >= right - tie).sum(dim=1) - above  # the right one is one of them
    return torch.stack([((k - above) / tied).clamp(0, 1) for k in ks], dim=1)


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())
