"""The results again without curves: exact scores, and training through `Objective`.

Needs the files of `cache.py` and the networks of `compare.py`. Scores of every sixth test document are computed again
from hidden states, and every network's likelihood from them. Then one network is trained as the library trains it, rows
streamed through an `Objective`, on the batches that it saw in the study.

  python -m benchmarks.studies.real_language.verify --model FOLDER
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dro_temp as dt
from benchmarks.studies.real_language import cache
from benchmarks.studies.real_language.borders import network
from benchmarks.studies.real_language.cache import Tokens, load
from benchmarks.studies.real_language.methods import BATCH, INPUTS, LOSSES, WARM_UP, tempnet

#: Every sixth document is evaluated exactly.
EVERY = 6


class StoredRows(dt.HostAdapter):
    """A frozen host whose hidden states are stored: rows of some tokens, whose scores are products."""

    views = ("token",)

    def __init__(self, head: Tensor) -> None:
        super().__init__(frozen=True)
        self.register_buffer("head", head)

    def rows(self, hidden: Tensor, target: Tensor) -> dict[str, dt.Rows]:
        """Rows of these tokens."""
        scores = dt.LinearScores(hidden, self.head)
        return {"token": dt.hosts.labelled_rows(scores, target, hidden, None)}


def targets(tokens: Tokens) -> Tensor:
    """Ids of the predicted tokens: the next one's previous token, or -1 at the end of a document."""
    following = torch.cat([tokens.previous[1:], torch.tensor([-1])])
    last = torch.cat([tokens.document[1:] != tokens.document[:-1], torch.tensor([True])])
    return following.masked_fill(last, -1)


@torch.no_grad()
def exact(
    tokens: Tokens, head: Tensor, nets: dict[str, dt.TempNet], rows: int = 64
) -> dict[str, tuple[float, float]]:
    """Of each network: NLL from scores, and from curves, over the same tokens."""
    target = targets(tokens)
    some = ((target >= 0) & (tokens.document % EVERY == 0)).nonzero().squeeze(1)
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in nets}
    for part in some.split(rows):
        scores = torch.nn.functional.linear(tokens.hidden[part], head)
        support = dt.Support(scores)
        for name, net in nets.items():
            tau = net(tokens.hidden[part], support=support)
            nll = torch.nn.functional.cross_entropy(scores / tau[:, None], target[part], reduction="sum")
            stored = net(tokens.hidden[part], statistics=tokens.statistics(part, head))
            sums[name] += torch.tensor([float(nll), float(tokens.curves[part].nll(stored).sum())])
    return {name: (float(s[0]) / len(some), float(s[1]) / len(some)) for name, s in sums.items()}


def through_objective(
    train: Tokens,
    head: Tensor,
    inputs: tuple[str, ...],
    loss: dt.RobustLoss,
    lr: float,
    steps: int,
    seed: int = 0,
) -> dt.TempNet:
    """Train as `methods.trained` does, of streamed rows."""
    torch.manual_seed(seed)
    net = tempnet(inputs, *train.hidden.shape[1:], train.curves.outcomes)
    objective = dt.Objective(StoredRows(head), net, loss)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    target = targets(train)
    target[target < 0] = -100  # the study knows these
    order, place = torch.randperm(len(train), generator=generator), 0
    objective.train()
    for step in range(steps):
        if place + BATCH > len(order):
            order, place = torch.randperm(len(train), generator=generator), 0
        rows, place = order[place : place + BATCH], place + BATCH
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / WARM_UP, 1 - step / steps)
        optimizer.zero_grad()
        objective(train.hidden[rows], target[rows]).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval()


def main() -> None:
    """Verify, and print."""
    parser = cache.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=100, help="of training through Objective; 0 for none")
    options = parser.parse_args()
    head = cache.model_of(options.model).lm_head.weight.detach()
    train, test = load("train", options.out), load("test", options.out)
    width, outcomes = test.hidden.shape[1], test.curves.outcomes
    nets = {
        f"{loss}, {label}": network(options.out, label, width, outcomes, loss)
        for loss in LOSSES
        for label in INPUTS
    }
    start = time.perf_counter()
    found: dict[str, Any] = dict(exact(test, head, nets))
    for name, (scores, curves) in found.items():
        print(f"{name}: {scores:.6f} from scores, {curves:.6f} from curves", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")
    if options.steps:
        start = time.perf_counter()
        net = through_objective(train, head, INPUTS["both"], dt.LikelihoodLoss(), 1e-2, options.steps)
        with torch.no_grad():
            nll = float(test.curves.nll(net(test.hidden, statistics=test.statistics())).double().mean())
        found["likelihood, both, through Objective"] = nll
        print(f"trained through Objective: {nll:.5f}, {time.perf_counter() - start:.0f} s")
    Path(options.out / "verify.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
