"""The contract of a temperature predictor."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dro_temp import _autograd
from dro_temp import functional as F
from dro_temp._checks import check_bounds, check_floats, check_kind, check_tensor
from dro_temp._loading import ShapeChecked
from dro_temp._tensors import LOW, at_least_float32, contiguous_left_factor
from dro_temp._typing import Features, PerRow, RowIndex, RowMask, Scores
from dro_temp.interfaces.rows import Rows, Support
from dro_temp.interfaces.statistics import Decoder, FrozenHead, ScoreStatistics

#: Inputs that a predictor may declare.
Readable: TypeAlias = Literal["features", "index", "support", "statistics"]

_READABLE = get_args(Readable)
_WIDE = (torch.float32, torch.float64)


def check_reads(reads: Any, owner: str) -> None:
    """Raise unless `reads`, declared by `owner`, is a set of `Readable` names."""
    if isinstance(reads, str) or not isinstance(reads, Collection) or not all(x in _READABLE for x in reads):
        raise ValueError(
            f"expected {owner}.reads as a set of names out of {list(_READABLE)}, received {reads!r}. Write "
            'reads = frozenset({"features"}), say.'
        )


class Reader:
    """A class that declares the inputs that it reads."""

    reads: frozenset[Readable]

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the declaration when the class is defined, not at its first call."""
        super().__init_subclass__(**options)
        declared = vars(cls).get("reads", ())
        if not hasattr(declared, "__get__"):  # a property is checked when it is read
            check_reads(declared, cls.__name__)


class PredictorInputs:
    """Inputs of a predictor for some rows: those declared in `reads`, and no others, on every path.

    Args:
        n: number of rows.
        owner: name of the class that declared them, for the error.
        **values: each declared value, one entry per row.

    Raises:
        AttributeError: on reading an undeclared input.

    Example:
        >>> inputs = PredictorInputs(2, features=torch.zeros(2, 8))
        >>> inputs.n, inputs.features.shape, hasattr(inputs, "statistics")
        (2, torch.Size([2, 8]), False)
    """

    #: Hidden state or embedding of each row, [n d], detached.
    features: Features
    #: Number of each row's sample in the data set, [n].
    index: RowIndex
    #: The scores over each row's support, detached.
    support: Support
    #: Statistics and projections of the scores, detached.
    statistics: ScoreStatistics

    def __init__(self, n: int, *, owner: str = "the class", **values: Any) -> None:
        for name, value in values.items():
            if name not in _READABLE:
                raise TypeError(
                    f"expected inputs out of {list(_READABLE)}, received {name!r}. Write PredictorInputs(n, "
                    "features=...), say."
                )
            setattr(self, name, value)
        self.n, self._owner, self._reads = n, owner, sorted(values)

    def __getattr__(self, name: str) -> Any:
        # Called for missing attributes only: undeclared inputs.
        if name not in _READABLE:
            raise AttributeError(
                f"expected n, {', '.join(_READABLE)} of PredictorInputs, received {name!r}. Write inputs.features, "
                "say, and declare it in reads."
            )
        declared = ", ".join(sorted(repr(x) for x in {*self._reads, name}))
        raise AttributeError(
            f"expected {name!r} among the reads of {self._owner}, whose `raw` reads inputs.{name}, received "
            f"reads={self._reads}. Write reads = frozenset({{{declared}}})."
        )


class TemperaturePredictor(Reader, ShapeChecked, ABC):
    """Maps each row to a temperature in [tau_min, tau_max].

    A subclass declares its inputs in `reads` and implements `raw`, whose result the base maps into the bounds. Inputs
    are detached: a predictor is trained by the loss, and never trains the host through its input.

    Args:
        tau_min: lower bound, > 0.
        tau_max: upper bound, > tau_min.
    """

    #: What `raw` needs: any of "features", "index", "statistics" (statistics and projections of the scores), and
    #: "support" (the scores themselves). With one of the last two, a streaming loss predicts block by block.
    reads = frozenset({"features"})
    #: True if the predictor updates itself from each row's own gradient dF/dtau (see `observe`).
    observes_gradient: bool = False
    #: True if `observe` takes rows that do not count, see there.
    observes_uncounted_rows: bool = False
    #: True if the predictor remembers something of the temperatures that it predicts in training (see `observe_tau`).
    observes_tau: bool = False

    def __init__(self, *, tau_min: float, tau_max: float) -> None:
        super().__init__()
        check_bounds(tau_min, tau_max)
        self.tau_min, self.tau_max = float(tau_min), float(tau_max)

    @abstractmethod
    def raw(self, inputs: PredictorInputs) -> PerRow:
        """One unbounded number per row, [n]; `bound` maps it into [tau_min, tau_max].

        Features arrive in the precision of the host; statistics in float32 or better. Cast them to that of your
        weights: `inputs.features.to(self.layer.weight.dtype)`.
        """

    def bound(self, raw: PerRow) -> PerRow:
        """Map into the bounds, smooth by default."""
        return F.sigmoid_between(raw, self.tau_min, self.tau_max)

    def start_prototypes(self, others: Features) -> None:
        """Initialise prototypes from features of the other views; by default there are none."""

    def observe(self, index: RowIndex, gradient: PerRow) -> None:
        """Receive each row's own dF/dtau, unscaled by reduction; only for `observes_gradient`.

        Rows that do not count are left out. With `observes_uncounted_rows` they come on a device, with index -1 and
        gradient 0 (`Staged.put` leaves them out), so that nothing waits for how many count.
        """
        raise NotImplementedError(f"{type(self).__name__} declares observes_gradient but does not observe")

    def observe_tau(self, tau: PerRow, counts: RowMask | None) -> None:
        """Receive the temperatures of a training forward; only for `observes_tau`.

        Args:
            tau: [n] temperatures, with their graph, so that their gradient can be hooked; of a predictor that reads
                scores without it, where the loss streams.
            counts: [n] False for rows that do not count; None if all do.
        """
        raise NotImplementedError(f"{type(self).__name__} declares observes_tau but does not observe it")

    def extra_repr(self) -> str:
        """The bounds."""
        return f"tau_min={self.tau_min}, tau_max={self.tau_max}"

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(
        self,
        features: Tensor | None = None,
        *,
        index: Tensor | None = None,
        support: Support | None = None,
        statistics: ScoreStatistics | None = None,
        shape: torch.Size | None = None,
        run: Callable[[], Any] | None = None,
    ) -> Tensor:
        """Temperatures, in float32 or better.

        Args:
            features: [... d], any leading dimensions.
            index: [...] sample numbers.
            support: scores of the rows over their support.
            statistics: statistics of those scores; computed from `support` if None.
            shape: [...] shape of the result; inferred if None.
            run: called instead, and its result returned: for code that predicts block by block
                (`temperatures_of_block`) and must run inside the hooks of the predictor, such as FSDP's, which gather
                its parameters.

        Returns:
            [...] temperatures in [tau_min, tau_max].

        Raises:
            ValueError: an input that this predictor reads is missing.
        """
        if run is not None:
            return run()  # type: ignore[no-any-return]
        for name, x in (("features", features), ("index", index)):
            if x is not None:
                check_tensor(name, x)
        if features is not None and features.dim() == 0:
            raise ValueError(
                "expected features of shape [..., d], received one number. Pass one vector for each row."
            )
        if support is not None:
            check_kind("support", support, Support, "Pass Support(scores).")
        if statistics is not None:
            check_kind("statistics", statistics, ScoreStatistics, "Pass support=Support(scores).")
        if statistics is None and support is not None and "statistics" in self.reads:
            statistics = ScoreStatistics(support.scores, support.mask)
        if shape is None:
            shape = _leading_shape(features, index, statistics, support)
        n = math.prod(shape)  # Size.numel() would take it for a constant in a graph
        features = None if features is None else features.reshape(n, features.shape[-1])
        index = None if index is None else index.reshape(-1)
        return self.temperatures_of_block(n, features, index, support, statistics).reshape(shape)

    @final
    def temperatures_of_block(
        self,
        n: int,
        features: Features | None,
        index: RowIndex | None,
        support: Support | None,
        statistics: ScoreStatistics | None,
    ) -> PerRow:
        """As `forward`, of n rows: the only place where `raw` is called, with exactly the declared inputs."""
        passed: dict[str, Any] = dict(zip(_READABLE, (features, index, support, statistics), strict=True))
        try:
            values = {name: passed[name] for name in self.reads}
        except (KeyError, TypeError):  # set on the instance: that of a class was checked when it was made
            check_reads(self.reads, type(self).__name__)
            raise
        if any(x is None for x in values.values()):
            raise ValueError(self._missing(passed))
        if "features" in values:
            x = values["features"].detach()
            values["features"] = contiguous_left_factor(x) if x.dtype in LOW else x
        raw = self.raw(PredictorInputs(n, owner=type(self).__name__, **values))
        # In a graph the number of rows is not compared, which would specialise it.
        one_per_row = isinstance(raw, Tensor) and raw.dim() == 1
        if not (one_per_row and (torch.compiler.is_compiling() or raw.shape[0] == n)):
            received = f"shape {list(raw.shape)}" if isinstance(raw, Tensor) else type(raw).__name__
            raise ValueError(
                f"expected a tensor of shape [{n}], one number per row, from {type(self).__name__}.raw, received "
                f"{received}. Write .squeeze(-1) after a layer of one output, or .expand(inputs.n) for one number for "
                "all."
            )
        return self.bound(raw if raw.dtype in _WIDE else at_least_float32(raw))

    @final
    def predict(self, rows: Rows) -> PerRow:
        """Temperatures of rows.

        Those of rows that do not count are undefined. More than 512 rows (32,768 on a device) are processed in blocks,
        whose activations are computed again in backward: no buffer grows with the batch. In training mode a module that
        remembers what it has seen (batch norm, the power iteration of spectral norm) is then updated by each block, and
        again in backward.
        """
        if not isinstance(rows, Rows):
            check_kind("rows", rows, Rows, "Pass Rows, or call predictor(features).")
        if self.reads_scores:
            rows = rows.inert_where_invalid()
            tau: Tensor = self(rows.features, index=rows.index, support=rows.support, shape=rows.target.shape)
            return tau
        features, index = rows.features, rows.index
        if rows.weight is not None:
            features, index = rows.inert_features_and_index()
        n = rows.target.shape[0]
        # In a graph, all rows are one block: the number of blocks would depend on theirs.
        one_block = (
            torch.compiler.is_compiling()
            or n <= (_autograd.BLOCK_OF_ROWS if rows.target.is_cpu else _autograd.BLOCK_OF_ROWS_ON_DEVICE)
            or "features" not in self.reads
            # Weights that `parametrize.cached()` keeps would be those of the first block, which has no graph.
            or torch.nn.utils.parametrize._cache_enabled > 0
        )
        if one_block or next(self.parameters(), None) is None or torch._C._are_functorch_transforms_active():
            return self(features, index=index, shape=rows.target.shape)  # type: ignore[no-any-return]
        return self(run=partial(self._predict_by_blocks, n, features, index))  # type: ignore[no-any-return]

    def _predict_by_blocks(self, n: int, features: Features | None, index: RowIndex | None) -> PerRow:
        training = self.training

        def temperatures(block: slice) -> PerRow:
            if self.training != training:
                self.refuse_other_mode()
            x, k = (None if part is None else part[block] for part in (features, index))
            return self.temperatures_of_block(block.stop - block.start, x, k, None, None)

        tau: PerRow = _autograd.CheckpointedBlocks.apply(temperatures, n, self, *self.whole_parameters())  # type: ignore[no-untyped-call]
        return tau

    @property
    def reads_scores(self) -> bool:
        """True if temperatures depend on the scores: the predictor then runs inside the pass."""
        return "statistics" in self.reads or "support" in self.reads

    @final
    def whole_parameters(self) -> tuple[Tensor, ...]:
        """All parameters, for code that computes their gradients itself.

        Raises:
            ValueError: one of them is sharded, and not gathered here; or has no shape yet, in a lazy module.
        """
        for name, parameter in self.named_parameters():
            if hasattr(parameter, "full_tensor"):
                raise ValueError(
                    f"expected the parameters of {type(self).__name__} gathered in its forward, received {name} "
                    "sharded there. Shard the predictor as one, fully_shard(predictor), or with the objective, "
                    "fully_shard(objective), and not its parts."
                )
            if is_lazy(parameter):
                raise ValueError(
                    f"expected the parameters of {type(self).__name__} to have a shape, received {name}, of a lazy "
                    "module that has not seen an input. Call the predictor once, predictor(features), before training."
                )
        return tuple(self.parameters())

    def _missing(self, values: dict[str, Any]) -> str:
        """The error message about declared inputs that were not passed."""
        required, absent = (
            dict.fromkeys("scores" if name in ("statistics", "support") else name for name in sorted(names))
            for names in (self.reads, (name for name in self.reads if values[name] is None))
        )
        wanted = ", ".join(required).replace("scores", "scores (support=dro_temp.Support(logits))")
        # Logits passed as features are the likely mistake.
        mistaken = "scores" in absent and values["features"] is not None and "features" not in self.reads
        unread = "features, which it does not read, and " if mistaken else ""
        arguments = (
            "support=dro_temp.Support(scores)" if name == "scores" else f"{name}=..." for name in absent
        )
        return (
            f"expected {wanted} for {type(self).__name__}, received {unread}no "
            f"{' and no '.join(absent)}. Pass {', '.join(arguments)}; in an Objective the host's Rows carry them "
            "(index: call objective(..., index=index))."
        )

    @final
    @torch.no_grad()
    def temperatures(self, logits: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """Temperatures of tokens, from what an engine has of them: the call for serving.

        Pass exactly what the predictor reads: logits if it reads scores, hidden states if it reads features, both if it
        reads both. They are what the model computes, before any penalty, mask or temperature. A constant reads nothing:
        pass either, for the number of tokens.

        Args:
            logits: [... vocabulary], as the model returns them.
            hidden: [... d], what the model's head was given.

        Returns:
            [...] temperatures in [tau_min, tau_max], in float32 or better, without gradient.

        Raises:
            ValueError: an input is missing or is not read; another vocabulary or width than that of the model that the
                predictor was made for; shapes or devices that do not match; a predictor in training mode that differs
                in it, or of sample numbers.
            TypeError: an input that is not a tensor of floating-point numbers.

        Example:
            >>> import torch, dro_temp as dt
            >>> tempnet = dt.TempNet.for_logits(99, tau_min=0.1, tau_max=2.0).eval()
            >>> tempnet.temperatures(logits=torch.randn(2, 7, 99)).shape
            torch.Size([2, 7])
        """
        self._refuse_training()
        self._refuse_index()
        inputs = {"logits": logits, "hidden": hidden}
        self._check_read(inputs)
        given = {name: x for name, x in inputs.items() if x is not None}
        outcomes, width = self.input_sizes
        weight = next(self.parameters(), None)
        for name, x in given.items():
            check_floats(name, x)
            size, unit = (outcomes, "vocabulary") if name == "logits" else (width, "d")
            if x.dim() == 0 or (size is not None and x.shape[-1] != size):
                raise ValueError(
                    f"expected {name} of shape [..., {unit if size is None else size}], those of the model that this "
                    f"{type(self).__name__} was made for, received shape {list(x.shape)}. "
                    + _other_size(name, x, size)
                )
            if weight is not None and x.device != weight.device:
                raise ValueError(
                    f"expected {name} on {weight.device}, as the weights of {type(self).__name__}, received them on "
                    f"{x.device}. Call predictor.to({str(x.device)!r}) once."
                )
        shapes = {x.shape[:-1] for x in given.values()}
        if len(shapes) > 1:
            received = " and ".join(f"{name} {list(x.shape)}" for name, x in given.items())
            raise ValueError(
                f"expected logits and hidden states of the same tokens, received {received}. Select the same "
                "positions of both."
            )
        rows = None if logits is None else logits.flatten(0, -2) if logits.dim() > 1 else logits[None]
        tau: Tensor = self(
            hidden if "features" in self.reads else None,
            support=Support(rows) if rows is not None and self.reads_scores else None,
            shape=shapes.pop(),
        )
        return tau

    @property
    def input_sizes(self) -> tuple[int | None, int | None]:
        """Size of the vocabulary and width of the hidden states that it was made for; None: any."""
        return None, None

    def _check_read(self, inputs: dict[str, Tensor | None]) -> None:
        """Raise unless the inputs are those that are read."""
        read = {"logits": self.reads_scores, "hidden": "features" in self.reads}
        wanted = [name for name, reads in read.items() if reads]
        passed = [name for name, x in inputs.items() if x is not None]
        if passed and (passed == wanted or not wanted):
            return
        call = ", ".join(f"{name}={name}" for name in wanted or ["logits"])
        raise ValueError(
            f"expected {' and '.join(wanted) or 'logits or hidden'} for {type(self).__name__}, which reads "
            f"{'both' if len(wanted) > 1 else 'no other'}, received {' and '.join(passed) or 'neither'}. Call "
            f"predictor.temperatures({call}); an engine that has no hidden states needs a predictor of logits or "
            "statistics alone."
        )

    def decoder(self, head: FrozenHead) -> Decoder:
        """A function for the temperatures of a frozen head's rows, called for every generated token.

        A subclass may precompute what depends on the frozen head. Parameters are read when the decoder is built; build
        another one after they have changed.

        Raises:
            ValueError: the predictor is in training mode and behaves differently in it (dropout), or reads sample
                numbers.
        """
        if not hasattr(head, "statistics"):  # a host may have one of its own
            check_kind("head", head, FrozenHead, "Pass FrozenHead(weight, bias).")
        self._refuse_training()
        self._refuse_index()
        reads = self.reads

        @torch.no_grad()
        def temperatures(queries: Features, scores: Scores) -> PerRow:
            tau: Tensor = self(
                queries if "features" in reads else None,
                support=Support(scores) if "support" in reads else None,
                statistics=head.statistics(queries, scores) if "statistics" in reads else None,
                shape=scores.shape[:1],
            )
            return tau

        return temperatures

    def refuse_other_mode(self) -> None:
        """Raise if temperatures that are computed again in backward would not be those of forward."""
        if any(map(_differs_in_training, self.modules())):
            raise RuntimeError(
                f"expected {type(self).__name__} in the mode of its forward, since temperatures are computed again in "
                f"backward, received one in {'training' if self.training else 'evaluation'} mode. Call train() or "
                "eval() after loss.backward()."
            )

    def _refuse_index(self) -> None:
        if "index" in self.reads:
            raise ValueError(
                f"expected a predictor of features or scores, received {type(self).__name__}, which knows samples "
                "by their numbers in a data set: what is generated has none. Train a TempNet."
            )

    def _refuse_training(self) -> None:
        differing = [part for part in self.modules() if part.training and _differs_in_training(part)]
        if differing:
            raise ValueError(
                f"expected {type(self).__name__} in evaluation mode, received one in training mode, whose "
                f"{type(differing[0]).__name__} would change the temperatures. Call predictor.eval() first."
            )


def check_reads_nothing(name: str, predictor: Any, instead: str) -> None:
    """Raise unless an argument called `name` is a predictor of one temperature for all rows; `instead` says what is."""
    check_kind(name, predictor, TemperaturePredictor, instead)
    if predictor.reads:
        raise ValueError(
            f"expected a {name} that reads nothing of a sample, since all samples have one, received "
            f"{type(predictor).__name__}, which reads {', '.join(sorted(predictor.reads))}. {instead}"
        )


def _differs_in_training(part: nn.Module) -> bool:
    """Whether a module computes something else in training mode, as unknown modules may."""
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, nn.RNNBase | nn.MultiheadAttention):
        return part.dropout > 0
    differing = (nn.modules.batchnorm._NormBase, nn.RReLU)
    return isinstance(part, differing) or not type(part).__module__.startswith(("torch.nn.", "dro_temp."))


def _other_size(name: str, x: Tensor, size: int | None) -> str:
    """What to do about logits or hidden states of another size."""
    if name == "logits" and size is not None and x.dim() > 0 and x.shape[-1] > size:
        return f"If the engine pads its vocabulary, pass logits[..., :{size}]; otherwise load the model's own TempNet."
    return "Load the TempNet that was trained with this model."


def _leading_shape(
    features: Tensor | None, index: Tensor | None, statistics: ScoreStatistics | None, support: Support | None
) -> torch.Size:
    if features is not None:
        return features.shape[:-1]
    if index is not None:
        return index.shape
    if statistics is not None:
        return statistics.shape
    if support is not None:
        return support.scores.shape[:-1]
    raise ValueError(
        "expected features, index, support or shape, to know for how many rows temperatures are wanted; "
        "received none of them. Pass shape=torch.Size([n])."
    )
