"""What temperatures do where one kind of text ends and another begins.

Needs the files of `cache.py` (halves of two test documents, for all ordered pairs of kinds) and the networks of
`compare.py`; seconds.

  python -m benchmarks.studies.real_language.borders
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import results
from benchmarks.harness.timing import machine
from benchmarks.studies.common.summary import Summary
from benchmarks.studies.real_language.cache import FOLDER, HALF, Tokens, load
from benchmarks.studies.real_language.methods import INPUTS, best_constant, tempnet
from benchmarks.studies.real_language.tables import TITLE, table

#: Positions relative to the border, of the token that is predicted: 0 is the first of the second kind.
WINDOWS = {
    "-64 to -1": (-64, 0),
    "0": (0, 1),
    "1 to 3": (1, 4),
    "4 to 15": (4, 16),
    "16 to 63": (16, 64),
    "64 to 127": (64, 128),
}


def network(folder: Path, label: str, width: int, outcomes: int, loss: str = "likelihood") -> Any:
    """The stored network of seed 0."""
    net = tempnet(INPUTS[label], width, outcomes)
    file = f"TempNet-{loss.replace(' ', '_')}-{label}.pt"
    net.load_state_dict(torch.load(folder / file, weights_only=True))
    return net.eval()


@torch.no_grad()
def temperatures(tokens: Tokens, folder: Path, label: str) -> Tensor:
    """Of a network that was trained for the likelihood."""
    net = network(folder, label, tokens.hidden.shape[1], tokens.curves.outcomes)
    result: Tensor = net(tokens.hidden, statistics=tokens.statistics())
    return result


def records(tokens: Tokens, train: Tokens, tau: Tensor) -> list[dict[str, Any]]:
    """For each window: likelihood against the constants of either kind, and how far the temperature has moved.

    "moved" is the regression slope, over all pairs of kinds, of the pair's mean temperature on the second kind's own
    mean minus the first kind's: 0 where the temperature is still that of the first kind, 1 where it is the second's.
    """
    c, relative = tokens.curves, tokens.position - HALF
    constants = torch.tensor([best_constant(train.curves[train.kind == k]) for k in range(len(train.kinds))])
    first, second = (
        torch.tensor([train.kinds.index(pair.split(" > ")[side]) for pair in tokens.kinds])[tokens.kind]
        for side in (0, 1)
    )
    before, after = constants[first], constants[second]
    own = _settled(tokens, train.kinds, tau, relative)
    found = []
    for window, (start, stop) in WINDOWS.items():
        of = (relative >= start) & (relative < stop)
        right = after if start >= 0 else before
        record: dict[str, Any] = {
            "method": window,
            "tokens": int(of.sum()),
            "nll": float(c.nll(tau)[of].mean()),
            "nll_constant": float(c.nll(right)[of].mean()),
            "nll_constant_of_first": float(c.nll(before)[of].mean()),
            "moved": _moved(tokens, tau, of, own[first], own[second]),
        }
        found.append(record)
    return found


def _settled(tokens: Tokens, kinds: tuple[str, ...], tau: Tensor, relative: Tensor) -> Tensor:
    """Mean temperature of each kind before any border, from its 64th token on."""
    before = (relative < 0) & (relative >= -64)
    first = torch.tensor([kinds.index(pair.split(" > ")[0]) for pair in tokens.kinds])[tokens.kind]
    return torch.stack([tau[before & (first == k)].mean() for k in range(len(kinds))])


def _moved(tokens: Tokens, tau: Tensor, of: Tensor, first: Tensor, second: Tensor) -> float:
    x, y = [], []
    for pair in range(len(tokens.kinds)):
        rows = of & (tokens.kind == pair)
        x.append(float((second - first)[rows][0]))
        y.append(float((tau - first)[rows].mean()))
    a, b = torch.tensor(x), torch.tensor(y)
    return float((a * b).sum() / (a * a).sum())


def main() -> None:
    """Measure, draw and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the runs (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="folder for the summary (default: that of --out)")
    options = parser.parse_args()
    tokens, train = load("borders", options.out), load("train", options.out)
    tau = temperatures(tokens, options.out, "both")
    summary = Summary({**machine(), "pairs": len(tokens.kinds)}, records(tokens, train, tau))
    file = (options.results or options.out) / "real_language.json"
    results.save(file, TITLE, "borders", asdict(summary))
    print(table("borders", summary))
    from benchmarks.studies.real_language.figures import draw_borders

    draw_borders(tokens, tau, options.out / "real_language_borders.png")


if __name__ == "__main__":
    main()
