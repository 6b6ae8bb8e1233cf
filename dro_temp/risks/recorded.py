"""A risk over the samples of a data set, which remembers the weight that it gave each of them."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dro_temp import distributed
from dro_temp import functional as F
from dro_temp._checks import check_count, check_flag, check_index, check_kind, check_share
from dro_temp._files import whole_file
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.interfaces import SampleRisk
from dro_temp.risks.standalone import StandaloneRisk
from dro_temp.state import Staged

# Of a sample that no step has seen: weights are never negative.
_UNSEEN = -1.0
# Of a file: bounds the memory that numbers of a large table take as Python's.
_LINES_AT_A_TIME = 2**16


class Suspect(NamedTuple):
    """A sample and what a `RecordedRisk` remembers of it.

    Attributes:
        sample: its number in the data set.
        weight: the moving average over its visits of its weight in the risk; 1 is that in the plain mean.
        last: the weight at the last visit, that of the last epoch.
        loss: the loss at the last visit, the mean over the sample's rows.

    Example:
        >>> Suspect(sample=7, weight=0.1, last=0.0, loss=9.0).sample
        7

    Source: this library.
    """

    sample: int
    weight: float
    last: float
    loss: float


class SampleWeights(Staged):
    """Weight and loss of every sample, an optimizer step after they were used.

    Args:
        num_samples: size of the data set.
        gamma: weight of a new visit in the moving average, in (0, 1].
        on_host: True to keep the tables in host memory.
    """

    memory = ("average", "last", "loss")
    expects_proposals = False  # a compiled step proposes nothing
    average: Tensor
    last: Tensor
    loss: Tensor

    def __init__(self, num_samples: int, gamma: float, *, on_host: bool) -> None:
        super().__init__()
        check_flag("on_host", on_host)
        self.on_host = on_host
        check_share("gamma", gamma)
        self.num_samples, self.gamma = check_count("num_samples", num_samples), float(gamma)
        self.remember("average", self.num_samples, _UNSEEN)
        self.remember("last", self.num_samples, _UNSEEN)
        self.remember("loss", self.num_samples, 0.0)

    def propose(self, sample: RowIndex, losses: PerRow, share: PerRow, *, gathered: bool) -> None:
        """Stage these samples; their weights are filled in when backward passes through the losses.

        Args:
            sample: their numbers; -1 for entries that are no sample.
            losses: their losses, with graph.
            share: their share of the plain mean.
            gathered: whether every process has the same samples, those of all.
        """
        mine = slice(distributed.rank(), None, distributed.world_size()) if gathered else slice(None)
        weight = torch.full_like(losses[mine].detach(), _UNSEEN)
        self.stage(sample[mine], weight, losses[mine])

        def fill(gradient: Tensor) -> None:
            # In proportion to the risk's weights, whatever the loss is multiplied by on its way.
            relative = gradient.detach() / share.masked_fill(share == 0, 1.0)
            total = gradient.detach().sum()
            weight.copy_((relative / torch.where(total == 0, torch.nan, total))[mine].clamp(min=0.0))

        losses.register_hook(fill)  # type: ignore[no-untyped-call]

    def write(self, *parts: Tensor) -> None:
        """Write the weights and losses of the samples, on every process alike."""
        if not parts:  # other processes may have some, and wait for this one
            empty = self.read_nothing("last")
            parts = empty.long(), empty, empty
        sample, weight, loss = (distributed.gather_rows(part)[0] for part in parts)
        # NaN and infinity, of a step that overflowed, would stay in the memory for good.
        sample = sample.masked_fill(~((weight >= 0) & weight.isfinite() & loss.isfinite()), -1)
        weight, loss = (F.mean_duplicates(sample, part) for part in (weight, loss))
        before = self.read("average", sample.clamp(min=0)).to(weight.dtype)
        average = torch.where(before < 0, weight, before + self.gamma * (weight - before))
        for name, values in (("average", average), ("last", weight), ("loss", loss)):
            self.put(name, sample, values)

    def resize(
        self, num_samples: int, *, shrink: bool = False, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Continue with a data set of another size, as `LogMovingAverage.resize`."""
        num_samples = self.check_resize(num_samples, shrink=shrink, optimizer=optimizer)
        self.resize_tables(num_samples)
        self.num_samples = num_samples

    def extra_repr(self) -> str:
        """Size of the tables."""
        return f"{self.num_samples}, gamma={self.gamma}"


class RecordedRisk(StandaloneRisk):
    r"""A risk over samples that are known by number; it remembers each one's weight, and lists those of least.

    A sample's loss is the mean over its rows. In an `Objective` these are the rows with its number in *all* views: the
    image and the text of a pair, or the tokens of a text. They count together, with the sum of their weights, so that a
    risk of radius zero is the mean over rows as without a risk.

    Around an `OptimisticRisk` samples of little weight are those that may be wrong. Weights are multiples of that in
    the plain mean: that of the last visit, which depends on the rest of its batch, and a moving average over visits.

    Weights are the gradient of the risk, noted during backward and written by the optimizer step: nothing is computed
    twice, and nothing waits for a device. In several processes all hold the whole table. Under `torch.compile` nothing
    is recorded.

    Args:
        risk: the risk: `OptimisticRisk(RisingRadius(KLRisk(0.0), 0.5, steps=1000))`, say.
        num_samples: size of the data set; sample numbers run from 0 to num_samples - 1.
        gamma: weight of a new visit in the moving average, in (0, 1].
        on_host: True to keep the tables, 12 bytes per sample, in host memory wherever the module goes.

    Raises:
        TypeError: `risk` is not a SampleRisk.
        ValueError: num_samples < 1 or gamma outside (0, 1]; in training, no sample numbers.
        IndexError: a sample number outside the table.

    Example:
        >>> import torch, dro_temp as dt
        >>> risk = dt.risks.RecordedRisk(dt.OptimisticRisk(dt.KLRisk(0.5)), num_samples=100)
        >>> losses = torch.tensor([0.1, 0.2, 0.3, 9.0], requires_grad=True)
        >>> risk(losses, index=torch.tensor([5, 17, 40, 99])).backward()
        >>> risk.commit()  # a step was taken
        >>> [(s.sample, round(s.weight, 2), round(s.loss, 2)) for s in risk.suspects(2)]
        [(99, 0.0, 9.0), (40, 0.44, 0.3)]

    Source: this library; docs/wrong-captions.md has the measurements.
    """

    needs_index = True

    def __init__(
        self, risk: SampleRisk, num_samples: int, *, gamma: float = 0.3, on_host: bool = False
    ) -> None:
        super().__init__()
        instead = "Write RecordedRisk(OptimisticRisk(KLRisk(0.5)), len(dataset)), say."
        check_kind("risk", risk, SampleRisk, instead)
        if risk.needs_index:
            raise ValueError(
                f"expected a risk that records nothing itself, received {type(risk).__name__}. {instead}"
            )
        self.risk = risk
        self.needs_groups = risk.needs_groups
        self.record = SampleWeights(num_samples, gamma, on_host=on_host)

    def check_index(self, index: Tensor | None) -> None:
        """Raise unless there are sample numbers that the table has."""
        if index is None:
            raise ValueError(
                f"expected the sample numbers for {type(self).__name__}, received index=None. Call risk(losses, "
                "index=index), or objective(..., index=index), with each sample's place in the data set "
                "(dro_temp.datasets.Indexed adds it); for held-out data call eval() first."
            )
        self.record.check(index)

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The wrapped risk, of samples without numbers."""
        return self.risk.value(losses, weight, group)

    def value_of_samples(
        self, losses: PerRow, weight: PerRow, group: RowIndex | None, index: RowIndex, *, gathered: bool
    ) -> Scalar:
        """The wrapped risk of the samples' mean losses."""
        inert = weight == 0
        index = check_index(index.masked_fill(inert, 0), self.record.num_samples).masked_fill(inert, -1)
        losses, weight, sample, group = F.rows_by_sample(losses, weight, index, group)
        learning = self.training and torch.is_grad_enabled() and losses.requires_grad
        if learning and not torch.compiler.is_compiling():
            self.record.propose(sample, losses, F.shares(losses, weight), gathered=gathered)
        return self.risk.value(losses, weight, group)

    def suspects(self, k: int | None = None) -> list[Suspect]:
        """The samples of least average weight, the least first; of equal ones that with the larger loss.

        Args:
            k: how many, at most; all that were seen if None.
        """
        columns = (column.tolist() for column in self._columns(k))
        return [Suspect(*row) for row in zip(*columns, strict=True)]

    def write_csv(self, path: str | Path, k: int | None = None) -> None:
        """Write `suspects(k)` as a table with the columns sample, weight, last and loss: a whole file or none.

        Args:
            path: the file, which is replaced; folders that are missing are made.
            k: how many samples, at most; all that were seen if None.
        """
        columns, path = self._columns(k), Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(f"{','.join(Suspect._fields)}\n".encode())
            for part in zip(*(torch.split(column, _LINES_AT_A_TIME) for column in columns), strict=True):
                rows = zip(*(column.tolist() for column in part), strict=True)
                file.write("".join(map("%d,%.6g,%.6g,%.6g\n".__mod__, rows)).encode())

    def _columns(self, k: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Numbers, weights, last weights and losses of the samples of least weight, in order."""
        average, last, loss = (x.cpu() for x in (self.record.average, self.record.last, self.record.loss))
        seen = (average >= 0).nonzero()[:, 0]
        seen = seen[loss[seen].argsort(descending=True, stable=True)]
        seen = seen[average[seen].argsort(stable=True)]
        seen = seen if k is None else seen[: check_count("k", k)]
        return seen, average[seen], last[seen], loss[seen]
