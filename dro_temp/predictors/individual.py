"""A table with one temperature per sample."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dro_temp import _faults, distributed
from dro_temp import functional as F
from dro_temp._checks import check_count, check_flag, check_index, check_kind, check_positive, check_within
from dro_temp._typing import PerRow, RowIndex
from dro_temp.interfaces import PredictorInputs, TemperaturePredictor
from dro_temp.kernels.dispatch import MOST_COMPARED, replaces_operations
from dro_temp.state import Staged
from dro_temp.state.staged import grown


@dataclass(frozen=True)
class GradientUpdate:
    r"""iSogCLR's update of a sample's temperature.

    $$m \leftarrow (1-\beta)\, m + \beta\,\mathrm{clip}(G), \qquad \tau \leftarrow \tau - \eta\, m$$

    `G = dF_i/dtau_i` is the row's own gradient, whatever the batch size, the accumulation or a gradient
    scaler make of it in the mean. `beta = 1` is the plain (clipped) gradient step.

    Args:
        lr: step eta, > 0.
        beta: weight of the new gradient, in (0, 1].
        clip: largest |G|, > 0; 5 for pairs, 3 for one modality.

    Raises:
        ValueError: a number outside its range.

    Source: arXiv 2305.11965 (iSogCLR), algorithm 1.
    """

    lr: float = 0.01
    beta: float = 0.9
    clip: float = 5.0

    def __post_init__(self) -> None:
        check_positive("lr", self.lr)
        check_positive("clip", self.clip)
        check_positive("beta", self.beta)
        check_within("beta", self.beta, 0.0, 1.0)


class IndividualTemperature(TemperaturePredictor, Staged):
    r"""$\tau_i$, one number for every sample of the data set: the scheme of iSogCLR.

    A table has no temperature for a new sample, and every entry learns only from its own sample; `TempNet` generalises.
    The table is written when an optimizer step is taken, or, with `update=None`, is an ordinary parameter for the base
    optimizer (whose momentum then changes every entry at every step, and whose gradient is that of the mean).

    Args:
        num_samples: size of the data set.
        tau_min: lower bound, > 0.
        tau_max: upper bound.
        tau_init: where every entry starts; the geometric middle if None.
        update: update rule of an entry; None leaves that to the base optimizer.
        on_host: True to keep the table and its momentum in host memory (pinned where CUDA is available) wherever
            the module goes: a step then moves its batch's entries only. 8 bytes per sample in every process.

    Raises:
        ValueError: bounds that do not form an interval, a start outside it, num_samples < 1, on_host without an update.
        IndexError: a sample number outside the table.

    Example:
        >>> import torch, dro_temp as dt
        >>> predictor = dt.IndividualTemperature(100, tau_min=0.01, tau_max=1.0)
        >>> predictor.eval()(index=torch.tensor([3, 4]))
        tensor([0.1000, 0.1000])

    Source: arXiv 2305.11965 (iSogCLR).
    """

    reads = frozenset({"index"})
    memory = ("tau", "momentum")
    observes_uncounted_rows = True
    tau: Tensor
    momentum: Tensor

    def __init__(
        self,
        num_samples: int,
        *,
        tau_min: float,
        tau_max: float,
        tau_init: float | None = None,
        update: GradientUpdate | None = GradientUpdate(),
        on_host: bool = False,
    ) -> None:
        super().__init__(tau_min=tau_min, tau_max=tau_max)
        start = (tau_min * tau_max) ** 0.5 if tau_init is None else tau_init
        check_within("tau_init", start, tau_min, tau_max)
        check_flag("on_host", on_host)
        if update is not None:
            check_kind(
                "update", update, GradientUpdate, "Pass GradientUpdate(lr=0.01), or None for the optimizer."
            )
        if on_host and update is None:
            raise ValueError(
                "expected an update of the table's own with on_host=True, received update=None: a base optimizer "
                "moves every entry at every step, on the device. Pass update=GradientUpdate(), or leave on_host out."
            )
        self._start = start
        self.num_samples, self.update = check_count("num_samples", num_samples), update
        self.on_host = on_host
        if update is None:
            self.tau = nn.Parameter(torch.full((self.num_samples,), start))
        else:
            self.remember("tau", self.num_samples, start)
            self.remember("momentum", self.num_samples, 0.0)
        self.observes_gradient = update is not None

    def raw(self, inputs: PredictorInputs) -> PerRow:
        """The entries."""
        index = check_index(inputs.index, self.num_samples)
        entries = self.read("tau", index)
        if self.update is None and (index.is_cuda or _faults.everywhere):
            entries = torch.where(index >= 0, entries, entries.detach())  # a wrong number trains no entry
        if self.observes_gradient and self.training and torch.is_grad_enabled():
            return entries.requires_grad_()
        return entries

    def bound(self, raw: PerRow) -> PerRow:
        """Clipped, as iSogCLR does."""
        return F.clip_between(raw, self.tau_min, self.tau_max)

    @property
    def expects_proposals(self) -> bool:
        """True with an update rule."""
        return self.observes_gradient

    def observe(self, index: RowIndex, gradient: PerRow) -> None:
        """Stage each row's own gradient."""
        self.stage(index.long(), gradient)

    def write(self, *parts: Tensor) -> None:
        """Step the entries whose gradients were observed, on every process alike."""
        if self.update is None:
            return
        if not parts:  # other processes may have some, and wait for this one
            empty = self.read_nothing("tau")
            parts = empty.long(), empty
        index, gradient = (distributed.gather_rows(part)[0] for part in parts)
        if (index.is_cuda or _faults.everywhere) and self._has_kernel(index, gradient):
            self._step_by_kernel(index, gradient, self.update)
            return
        gradient = F.mean_duplicates(index, gradient).clamp(-self.update.clip, self.update.clip)
        at = index.clamp(min=0)
        momentum = (1 - self.update.beta) * self.read("momentum", at) + self.update.beta * gradient
        self.put("momentum", index, momentum)
        tau = self.read("tau", at) - self.update.lr * momentum
        self.put("tau", index, tau.clamp(self.tau_min, self.tau_max))

    def _has_kernel(self, index: RowIndex, gradient: PerRow) -> bool:
        """Whether one kernel finds the duplicates and steps; more rows are sorted."""
        few = 0 < len(index) <= MOST_COMPARED and gradient.dtype == self.tau.dtype == torch.float32
        # Tables that were loaded with assign=True may be views.
        whole = self.tau.is_contiguous() and self.momentum.is_contiguous()
        return few and whole and replaces_operations(index, gradient, self.tau, self.momentum)

    def _step_by_kernel(self, index: RowIndex, gradient: PerRow, update: GradientUpdate) -> None:
        from dro_temp.kernels.backends.triton import temperature_table

        tables, bounds = (self.tau, self.momentum), (self.tau_min, self.tau_max)
        temperature_table.step(
            index, gradient, *tables, lr=update.lr, beta=update.beta, clip=update.clip, bounds=bounds
        )
        for table in tables:  # which a kernel does not
            torch.autograd.graph.increment_version(table)

    def resize(
        self, num_samples: int, *, shrink: bool = False, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Continue with a data set of another size: temperatures stay, new samples start at `tau_init`.

        Args:
            num_samples: the new size of the data set; earlier samples keep their numbers.
            shrink: True to allow a smaller size, which forgets the last samples.
            optimizer: with `update=None`, the optimizer that trains the table, if there is one already: its moments
                grow with the table, from zero. With an update of the table's own it is not used.

        Raises:
            RuntimeError: proposals are pending: resize after `optimizer.step()`.
            ValueError: a smaller size without `shrink`, or one below 1; an optimizer that does not train the table.
        """
        num_samples = self.check_resize(num_samples, shrink=shrink, optimizer=optimizer)
        if self.update is not None:
            self.resize_tables(num_samples)
        else:
            # The parameter stays the same object, by which optimizers and wrappers identify it.
            self.tau.data, self.tau.grad = grown(self.tau.data, num_samples, self._start), None
            state = {} if optimizer is None else optimizer.state.get(self.tau, {})
            for name, x in state.items():
                if isinstance(x, Tensor) and x.shape == (self.num_samples,):
                    state[name] = grown(x, num_samples, 0.0)
        self.num_samples = num_samples

    def extra_repr(self) -> str:
        """Size and update."""
        return f"{self.num_samples}, {super().extra_repr()}, update={self.update}"
