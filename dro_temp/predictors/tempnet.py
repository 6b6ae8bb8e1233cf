"""The temperature network."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp import _faults
from dro_temp import functional as F
from dro_temp._checks import check_class, check_feasible, check_kind, check_radius, check_within
from dro_temp._typing import Features, PerRow
from dro_temp.interfaces import Decoder, FrozenHead, PredictorInputs, TemperaturePredictor
from dro_temp.kernels import readout
from dro_temp.kernels.dispatch import replaces_operations
from dro_temp.predictors import checkpoint
from dro_temp.predictors.encoders import (
    HiddenEncoder,
    LogitEncoder,
    PrototypeEncoder,
    StatisticsEncoder,
    SumEncoder,
    TempNetEncoder,
    class_named,
    encoder_of,
)
from dro_temp.predictors.language_models import HeadShape, LmInput
from dro_temp.predictors.logit_decoder import logit_decoder
from dro_temp.predictors.model_card import write_card, write_custom_generate
from dro_temp.predictors.paper_checkpoint import reference_state
from dro_temp.predictors.readouts import READOUTS, PooledReadout, ResidualReadout, TempNetReadout

#: Built-in encoders that a checkpoint may name.
ENCODERS = (PrototypeEncoder, LogitEncoder, HiddenEncoder, StatisticsEncoder, SumEncoder)


class TempNet(TemperaturePredictor):
    r"""A small network that reads each row and returns its temperature: transform, project, pool.

    With similarities $v$ from the encoder, $a = \mathrm{softmax}(v / e^\varphi)$ and

    $$\tau = \tau_{\min} + (\tau_{\max} - \tau_{\min})\,
    \sigma\left(w^\top \left[(a - \tfrac1K) \odot y\right] + b\right),$$

    $y$ what the encoder pools. The form follows from the closed-form optimum: a softmax-weighted mean of
    similarities, whose sharpness $\varphi$ is trained.

    Args:
        encoder: a `TempNetEncoder`, or the width of the embedding for the paper's `PrototypeEncoder`.
        tau_min: lower bound, > 0, in units of the scores.
        tau_max: upper bound.
        prototypes: number of prototypes, if `encoder` is a width.
        dropout: dropout in training, if `encoder` is a width.
        tau_init: the temperature of a row whose pooled sum is zero, strictly between the bounds; the middle
            (readout bias 0, as in the paper) if None.
        readout: how similarities become a number: `PooledReadout`, the paper's, or `ResidualReadout`.

    Raises:
        ValueError: bounds that do not form an interval, or a start outside it.

    Example:
        >>> import torch, dro_temp as dt
        >>> tempnet = dt.TempNet(512, tau_min=0.005, tau_max=0.05)
        >>> tau = tempnet(torch.randn(8, 512))
        >>> tau.shape, bool((tau >= 0.005).all() and (tau <= 0.05).all())
        (torch.Size([8]), True)

    Source: arXiv 2404.04575, section 4.
    """

    #: The head of the language model that it was built for, or None.
    made_for: HeadShape | None = None
    #: The radius that it is meant for, saved with it for information; the loss has its own.
    rho: float | None = None

    def __init__(
        self,
        encoder: int | TempNetEncoder,
        *,
        tau_min: float,
        tau_max: float,
        prototypes: int = 256,
        dropout: float = 0.5,
        tau_init: float | None = None,
        readout: type[TempNetReadout] = PooledReadout,
    ) -> None:
        super().__init__(tau_min=tau_min, tau_max=tau_max)
        if not isinstance(encoder, TempNetEncoder) and isinstance(encoder, Integral):
            encoder = PrototypeEncoder(encoder, prototypes=prototypes, dropout=dropout)
        instead = "Pass the width of the embedding, TempNet(512, ...), or an encoder."
        check_kind("encoder", encoder, TempNetEncoder, instead)
        instead = "Pass PooledReadout or ResidualReadout, the class itself."
        check_class("readout", readout, TempNetReadout, instead)
        assert isinstance(encoder, TempNetEncoder)
        self.encoder = encoder
        self.reads = encoder.reads
        self.readout = readout(encoder)
        if tau_init is not None:
            margin = 1e-6 * (tau_max - tau_min)
            check_within("tau_init", tau_init, tau_min + margin, tau_max - margin)
            self.readout.start_at(F.logit_between(tau_init, tau_min, tau_max))

    @classmethod
    def for_logits(
        cls,
        outcomes: int,
        *,
        tau_min: float,
        tau_max: float,
        width: int = 256,
        dropout: float = 0.5,
        centred: bool = False,
        tau_init: float | None = None,
    ) -> "TempNet":
        """The paper's network over the logits of a classifier or language model.

        The bounds and `tau_init` are those of `TempNet`, the other arguments those of its `LogitEncoder`.

        Example:
            >>> import torch, dro_temp as dt
            >>> tempnet = dt.TempNet.for_logits(10, tau_min=0.1, tau_max=4.0)
            >>> tempnet.predict(dt.Rows(torch.randn(5, 10), torch.zeros(5, dtype=torch.long))).shape
            torch.Size([5])
        """
        encoder = LogitEncoder(outcomes, width=width, dropout=dropout, centred=centred)
        return cls(encoder, tau_min=tau_min, tau_max=tau_max, tau_init=tau_init)

    @classmethod
    def for_lm(
        cls,
        model: nn.Module,
        *,
        tau_min: float,
        tau_max: float,
        inputs: LmInput | Sequence[LmInput] = "logits",
        width: int | None = None,
        dropout: float | None = None,
        centred: bool = False,
        tau_init: float | None = None,
        rho: float | None = None,
        readout: type[TempNetReadout] | None = None,
    ) -> "TempNet":
        """A network for the tokens of a Hugging Face causal language model.

        The paper's network reads the normalised logits, without the scale that the optimum depends on. Hidden states
        and statistics keep it, and come closer to the optimal temperatures, both together closest; a narrow network
        is then sufficient, with which a training step takes 0.2 to 1.2 % longer in the measurements of the docs.

        Args:
            model: the model; its head's weight says how many outcomes there are and how wide hidden states are.
            tau_min: lower bound, > 0, in units of the logits.
            tau_max: upper bound.
            inputs: "logits" (the paper's `LogitEncoder`), "hidden" (`HiddenEncoder`), "statistics"
                (`StatisticsEncoder`), or a tuple of several.
            width: hidden width; None: 256 for logits alone, as in the paper, else 64.
            dropout: dropout in training; None: 0.5 for logits alone, as in the paper, else 0.
            centred: subtract each row's maximum from the logits first, see `LogitEncoder`.
            tau_init: see `TempNet`.
            rho: the radius for training: checked against the vocabulary, and saved with the network.
            readout: see `TempNet`; None: `PooledReadout` for logits alone, as in the paper, else `ResidualReadout`.

        Raises:
            TypeError: a model without a head.
            ValueError: unknown inputs, centred=True without logits, rho >= log of the vocabulary.

        Example:
            >>> import dro_temp as dt, transformers
            >>> config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
            >>> model = transformers.GPT2LMHeadModel(config)
            >>> tempnet = dt.TempNet.for_lm(model, inputs=("hidden", "statistics"), tau_min=0.1, tau_max=2.0)
            >>> tempnet.made_for.outcomes, tempnet.made_for.width, sorted(tempnet.reads)
            (99, 16, ['features', 'statistics'])
        """
        head = HeadShape.from_model(model)
        outcomes, features = head.outcomes or 0, head.width or 0
        if rho is not None:
            check_radius(rho)
            check_feasible(rho, outcomes, instead="Lower rho: m is the size of the vocabulary.")
        names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        paper = names == ("logits",)
        # Without dropout the others fit better, and a width of 256 would gain them 0.1 % of the optimum.
        dropout = (0.5 if paper else 0.0) if dropout is None else dropout
        width = (256 if paper else 64) if width is None else width
        build: dict[str, Callable[[], TempNetEncoder]] = {
            "hidden": lambda: HiddenEncoder(features, width=width, dropout=dropout),
            "logits": lambda: LogitEncoder(outcomes, width=width, dropout=dropout, centred=centred),
            "statistics": lambda: StatisticsEncoder(width=width, dropout=dropout),
        }
        if not names or len(set(names)) < len(names) or not set(names) <= set(build):
            raise ValueError(
                f"expected inputs of {', '.join(build)}, one or several different ones, received {inputs!r}. "
                "Pass inputs='hidden', say, or inputs=('hidden', 'statistics')."
            )
        if centred and "logits" not in names:
            raise ValueError(
                f"expected 'logits' among the inputs with centred=True, received {inputs!r}: the others are not "
                "changed by it. Leave centred out, or pass inputs='logits'."
            )
        encoders = [build[name]() for name in names]
        encoder = encoders[0] if len(encoders) == 1 else SumEncoder(encoders)
        if readout is None:
            readout = PooledReadout if paper else ResidualReadout
        network = cls(encoder, tau_min=tau_min, tau_max=tau_max, tau_init=tau_init, readout=readout)
        network.made_for, network.rho = head, rho
        return network

    @classmethod
    def from_reference(
        cls, source: Mapping[str, Tensor] | str | Path, *, tau_min: float, tau_max: float, centred: bool
    ) -> "TempNet":
        """The network of a checkpoint of the paper's code for a language model, in evaluation mode.

        Such a file does not contain bounds and centring, and the published code is inconsistent: it trains with
        tau_max = 2.0 on raw logits, and generates with tau_max = 1.2 on centred ones. Pass those you want.

        Args:
            source: a state dict with the keys `tempnet.proj.0.weight`, ..., or the file that holds one.
            tau_min: lower bound; 0.01 there.
            tau_max: upper bound.
            centred: True to subtract each row's maximum from the logits first.

        Raises:
            ValueError: missing or unknown keys, or shapes that do not match.
            FileNotFoundError: no such file.

        Example:
            >>> import torch, dro_temp as dt
            >>> state = {"scaler": torch.zeros(1), "last.weight": torch.ones(1, 4), "last.bias": torch.zeros(1)}
            >>> state |= {"proj.0.weight": torch.randn(4, 99), "proj.0.bias": torch.zeros(4)}
            >>> state |= {"proj.3.weight": torch.randn(4, 4), "proj.3.bias": torch.zeros(4)}
            >>> tempnet = dt.TempNet.from_reference(state, tau_min=0.01, tau_max=2.0, centred=False)
            >>> tempnet.encoder.outcomes, tempnet.encoder.width
            (99, 4)
        """
        state = reference_state(source)
        width, outcomes = state["encoder.first.weight"].shape
        network = cls.for_logits(outcomes, width=width, centred=centred, tau_min=tau_min, tau_max=tau_max)
        network.load_state_dict(state)
        return network.eval()

    def check_fits(self, model: nn.Module) -> None:
        """Raise unless this network was built for such a model: the same vocabulary, the same width.

        Args:
            model: a Hugging Face causal language model.

        Raises:
            ValueError: another vocabulary or width.
            TypeError: a model without a head.
        """
        (self.made_for or HeadShape(*self.input_sizes)).check(HeadShape.from_model(model))

    @property
    def input_sizes(self) -> tuple[int | None, int | None]:
        """Size of the vocabulary and width of the hidden states that it was made for; None: any."""
        if self.made_for is not None:
            return self.made_for.outcomes, self.made_for.width
        return self.encoder.outcomes, self.encoder.features

    @property
    def config(self) -> dict[str, Any]:
        """Encoder, readout, bounds, radius, and the language model that it was built for."""
        return {
            "encoder": self.encoder.description,
            "readout": type(self.readout).__name__,
            "tau_min": self.tau_min,
            "tau_max": self.tau_max,
            "rho": self.rho,
            "made_for": None if self.made_for is None else asdict(self.made_for),
        }

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        encoders: Iterable[type[TempNetEncoder]] = (),
        readouts: Iterable[type[TempNetReadout]] = (),
    ) -> "TempNet":
        """A network of this `config`, which may name these classes of your own, with fresh weights."""
        encoder = encoder_of(config["encoder"], (*ENCODERS, *encoders))
        readout: type[TempNetReadout] = class_named("a readout", config["readout"], (*READOUTS, *readouts))
        network = cls(encoder, tau_min=config["tau_min"], tau_max=config["tau_max"], readout=readout)
        made_for, network.rho = config["made_for"], config["rho"]
        if network.rho is not None:
            check_radius(network.rho)
        network.made_for = None if made_for is None else HeadShape(**made_for)
        return network

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and the weights; a kill leaves the earlier checkpoint or this one, nothing between.

        A model card, `README.md`, is written as well: which model the network was made for, its bounds and radius, how
        to load it, and what to cite. A network of a language model also gets `custom_generate/generate.py`, with which
        `model.generate(..., custom_generate=folder, trust_remote_code=True)` generates at its temperatures (and
        `tempnet=folder`, if the folder was moved since). Needs safetensors, and the Hub huggingface_hub:
        `pip install 'dro-temp[llm]'`.

        Args:
            folder: created if missing; other files in it are left alone, and so is a `README.md` that was not written
                here or has been edited since.

        Raises:
            FileExistsError: the folder holds the `config.json` of something else, such as a language model.
            ImportError: safetensors is missing.
        """
        config = {"class": type(self).__name__, **self.config}
        checkpoint.write(Path(folder), config, self.state_dict())
        write_card(Path(folder), config, sum(p.numel() for p in self.parameters()))
        if self.made_for is not None:
            write_custom_generate(Path(folder), str(Path(folder).resolve()))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        encoders: Iterable[type[TempNetEncoder]] = (),
        readouts: Iterable[type[TempNetReadout]] = (),
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> "TempNet":
        """Load a saved network, in evaluation mode, on the CPU, in the precision of its weights.

        Nothing is imported by a name in a file: classes of your own are passed as arguments.

        Args:
            source: a folder, or "owner/name" on the Hugging Face Hub.
            encoders: encoder classes of your own, if it was built with one.
            readouts: readout classes of your own, if it was built with one.
            revision: branch, tag or commit on the Hub.
            token: for private repositories.
            cache_dir: where copies from the Hub are kept.

        Raises:
            FileNotFoundError: no such folder, or a file of the checkpoint is missing.
            OSError: the Hub has no such repository, or cannot be reached.
            ValueError: a damaged checkpoint, one of another class, or weights of another shape.
            ImportError: safetensors or huggingface_hub is missing.
        """
        custom = tuple(encoders), tuple(readouts)
        folder = checkpoint.local_folder(source, revision=revision, token=token, cache_dir=cache_dir)
        return checkpoint.load(folder, cls, lambda config: cls.from_config(config, *custom), any(custom))

    def push_to_hub(self, name: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload to the Hugging Face Hub, in one commit, with a model card; the repository is created if missing.

        A card that was edited on the Hub is left alone.

        Args:
            name: "owner/name", or "name" under your own account.
            private: whether a repository that is created is private; None: the account's default.
            token: yours; that of `hf auth login` if None.

        Returns:
            The repository's address.

        Raises:
            ImportError: safetensors or huggingface_hub is missing.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return checkpoint.upload(Path(folder), name, type(self).__name__, private=private, token=token)

    def start_prototypes(self, others: Features) -> None:
        """Initialise the encoder's prototypes, if it has any, from features of the other side."""
        self.encoder.set_prototypes(others)

    def decoder(self, head: FrozenHead) -> Decoder:
        """See `TemperaturePredictor.decoder`; over logits the first layer is folded into the head."""
        self._refuse_training()
        if isinstance(self.encoder, LogitEncoder) and isinstance(self.readout, PooledReadout):
            return logit_decoder(self, self.encoder, self.readout, head)
        return super().decoder(head)

    def raw(self, inputs: PredictorInputs) -> PerRow:
        """The readout, before it is squashed into the bounds."""
        raw: PerRow = self.readout(self.encoder, self.encoder(inputs))
        return raw

    def bound(self, raw: PerRow) -> PerRow:
        """Map into the bounds by `functional.sigmoid_between`; on a GPU by one kernel."""
        if (raw.is_cuda or _faults.everywhere) and raw.dtype == torch.float32 and replaces_operations(raw):
            tau: PerRow = readout.FusedBounds.apply(raw, self.tau_min, self.tau_max)  # type: ignore[no-untyped-call]
            return tau
        return F.sigmoid_between(raw, self.tau_min, self.tau_max)
