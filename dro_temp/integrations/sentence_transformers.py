"""sentence-transformers' trainer: an objective as a loss for it, and sample numbers that reach that loss."""

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dro_temp._checks import check_flag, check_index, check_integers
from dro_temp._files import whole_file
from dro_temp._modes import evaluating
from dro_temp._optional import optional_module
from dro_temp._typing import RowIndex
from dro_temp.hosts import InChunks, SentenceTransformers
from dro_temp.hosts._modules import shadow_copy
from dro_temp.hosts.labels import as_index
from dro_temp.integrations._duplicate_texts import groups_of_texts
from dro_temp.integrations._replicas import Replicas
from dro_temp.integrations._temperature_log import TemperatureMoments
from dro_temp.interfaces import HostAdapter, RobustLoss, TemperaturePredictor
from dro_temp.objective import Objective
from dro_temp.objective.views import PerView
from dro_temp.predictors.model_card import CITATION
from dro_temp.state.transaction import Transaction

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerCallback

__all__ = ["RobustRankingLoss", "number_samples"]

_HOST = "objective.host."
_LABELS = ("label", "labels", "score", "scores")  # columns that the trainer takes for labels


class RobustRankingLoss(nn.Module):
    r"""A predictor and a robust loss as the loss of sentence-transformers' own trainer.

    Data are those of its `MultipleNegativesRankingLoss`: columns (anchor, positive), or (anchor, positive, negative_1,
    ...). The loss is the mean over two views, the rows of `hosts.SentenceTransformers`; with an `InfoNCELoss` at the
    temperature $\tau$ it is that of `MultipleNegativesRankingLoss` with `scale` $1/\tau$, the directions query_to_doc
    and doc_to_query, and partition_mode="per_direction". In several processes columns are gathered with gradient.

    The trainer trains the loss's own parameters: `learning_rate_mapping={"predictors": 1e-4}` gives temperatures a
    learning rate of their own. It neither commits nor saves a loss's memory, which is what `callback` is for.

    Args:
        model: the `SentenceTransformer` that is trained.
        predictor: one for both views, "anchor" and "positive", or one per view.
        loss: one for both views, or, if it remembers samples, one per view.
        exclude_duplicates: True where some texts of a batch may be equal: pairs with the same anchor or the same
            positive are no negatives of each other, nor is a hard negative that equals the positive. Equal are texts
            of equal tokens, on all processes together; each step reads them from the device.
        groups: [num_samples] number of each sample's group, whose pairs are no negatives of each other; -1: alone. In
            training, with sample numbers. `evaluation.near_duplicate_groups` makes them.
        mini_batch_size: encode so many texts at a time, with the loss and gradient of the whole batch, as the package's
            `CachedMultipleNegativesRankingLoss` does; None: all at once.
        **options: of `Objective`: risk=RecordedRisk(risk, len(dataset)) for pairs some of which are wrong, say, or
            check_finite=False under a float16 gradient scaler.

    Attributes:
        metrics: those of the objective for the last batch, such as "anchor/tau_mean"; not returned, since the trainer
            adds up whatever a loss returns.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: fewer than two columns; missing sample numbers, or numbers beyond a table; hard negatives together
            with penalties or mini_batch_size, which compare pairs alone.
        RuntimeError: a trainer that does not commit the memory.

    Example:
        >>> import dro_temp as dt
        >>> from dro_temp.integrations.sentence_transformers import RobustRankingLoss
        >>> class Bag(torch.nn.EmbeddingBag):  # stands for a SentenceTransformer
        ...     def forward(self, features):
        ...         return {"sentence_embedding": super().forward(features["input_ids"])}
        >>> views = RobustRankingLoss.views
        >>> robust = {view: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(100)) for view in views}
        >>> loss = RobustRankingLoss(Bag(99, 16), dt.LearnableTemperature(0.05), robust)
        >>> anchor, positive = ({"input_ids": torch.randint(99, (8, 5))} for _ in range(2))
        >>> loss([anchor, positive], torch.arange(8)).backward()
        >>> loss.objective.commit()  # the callback does that, when the trainer has taken a step
        >>> int(robust["anchor"].estimator.log_u.isfinite().sum())
        8

    Source: the signature is that of sentence-transformers' losses; arXiv 2404.04575.
    """

    views = SentenceTransformers.views
    groups: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        predictor: PerView[TemperaturePredictor],
        loss: PerView[RobustLoss],
        *,
        exclude_duplicates: bool = False,
        groups: RowIndex | None = None,
        mini_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_flag("exclude_duplicates", exclude_duplicates)
        self.exclude_duplicates = exclude_duplicates
        if groups is not None:
            check_integers("groups", groups)
        self.register_buffer("groups", groups, persistent=False)  # of the data set, not of the run
        host: HostAdapter = SentenceTransformers(model)
        self.mini_batch_size = mini_batch_size
        if mini_batch_size is not None:
            host = InChunks(host, size=mini_batch_size)
        self.objective = Objective(host, predictor, loss, **options)
        self.metrics: dict[str, Tensor] = {}
        self.temperatures: TemperatureMoments | None = None  # for `log_temperatures`
        self._replicas = Replicas()
        # Functions, not methods: torch marks what it is given, and copies and pickles keep it.
        self.register_state_dict_post_hook(_leave_model_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_do_not_miss_model)  # type: ignore[no-untyped-call]

    @property
    def model(self) -> nn.Module:
        """The model, as the trainer has wrapped it; it looks here."""
        host = self.objective.host
        inner = host.host if isinstance(host, InChunks) else host
        assert isinstance(inner, SentenceTransformers)
        return inner.model

    def forward(self, sentence_features: Iterable[Mapping[str, Any]], labels: Any = None) -> Tensor:
        """The loss of a batch; without gradient, that of held-out data, which leaves the memory alone.

        Args:
            sentence_features: the columns, tokenised: anchor, positive, hard negatives.
            labels: [n] the samples' numbers. Without gradient, only predictors that read them get them.
        """
        columns = list(sentence_features)
        self._check_columns(columns)
        anchor, positive, *negatives = columns
        numbers = self._numbers(labels)
        batch: dict[str, Any] = {"negatives": tuple(negatives), "index": numbers}
        batch |= self._group(columns, numbers)
        with self._training() if torch.is_grad_enabled() else self._held_out() as objective:
            output = objective(anchor, positive, **batch)
        self.metrics = output.metrics
        if self.temperatures is not None:
            for view, tau in output.tau.items():
                self.temperatures.add(view, tau, training=torch.is_grad_enabled())
        loss: Tensor = output.loss
        return loss

    def callback(
        self, *, resume_from: str | os.PathLike[str] | None = None, name: str = "robust_ranking_loss"
    ) -> "TrainerCallback":
        """The callback that the trainer needs beside the loss: `callbacks=[loss.callback()]`.

        It commits the memory when a step was taken, and discards that of a step that a gradient scaler skipped. It
        saves the loss, without the model, as "{name}.pt" in each checkpoint's folder, a whole file or none; loads it
        when the trainer resumes; and loads that of the best checkpoint where the trainer loads the best model.

        Args:
            resume_from: folder of the checkpoint to be resumed; that of its step in the trainer's `output_dir` if None.
            name: another for each of several losses.

        Raises:
            ImportError: transformers is not installed.
            FileNotFoundError: when the trainer resumes, a checkpoint without the loss.
            ValueError: then, the loss of another run, step or shape.
        """
        return _memory_callback(self, f"{name}.pt", resume_from)

    def get_config_dict(self) -> dict[str, Any]:
        """The loss, for the model card."""
        parts = {"predictor": self.objective.predictors, "loss": self.objective.losses}
        config: dict[str, Any] = {
            f"{view}_{part}": repr(modules[view]) for part, modules in parts.items() for view in self.views
        }
        return {
            **config,
            "mini_batch_size": self.mini_batch_size,
            "exclude_duplicates": self.exclude_duplicates,
            "groups": self.groups is not None,
        }

    @property
    def citation(self) -> str:
        """For the model card."""
        return CITATION

    def _group(self, columns: list[Mapping[str, Any]], numbers: Any) -> dict[str, Any]:
        """Numbers of the groups of the pairs, and of their hard negatives."""
        anchor, positive, *negatives = columns
        of_samples, training = None, torch.is_grad_enabled()
        if self.groups is not None and training:
            index = as_index(numbers, self.groups.device)
            assert index is not None
            of_samples = self.groups[check_index(index, len(self.groups)).to(self.groups.device)].to(
                index.device
            )
        if not self.exclude_duplicates:
            return {} if of_samples is None else {"group": of_samples}
        group, of_negatives = groups_of_texts(
            anchor, positive, negatives, of_samples, gathers=training and self.objective.host.objective_trains
        )
        return {"group": group} | ({} if of_negatives is None else {"negatives_group": of_negatives})

    def _numbers(self, labels: Any) -> Any:
        """The labels, if a table reads them as sample numbers."""
        predictors: Any = self.objective.predictors.values()
        # Held-out data have no place in a memory, and their labels may be anything.
        remembers = torch.is_grad_enabled() and self.training and self.objective.needs_index
        grouped = self.groups is not None and torch.is_grad_enabled()
        if not (remembers or grouped or any("index" in p.reads for p in predictors)):
            return None
        if labels is None:
            raise ValueError(
                "expected sample numbers for a part that remembers samples, received no labels. Write "
                "train_dataset=number_samples(dataset), which adds them as the column 'label', or use parts without "
                "memory."
            )
        return labels

    def _check_columns(self, columns: list[Mapping[str, Any]]) -> None:
        if len(columns) < 2:
            raise ValueError(
                f"expected columns anchor, positive and perhaps hard negatives, received {len(columns)}. Give the data "
                "set at least two columns of texts: dataset.select_columns(['anchor', 'positive', 'label'])."
            )
        if len(columns) > 2 and (self.mini_batch_size is not None or len(self.objective.penalties)):
            raise ValueError(
                f"expected pairs where mini_batch_size or penalties are given, received {len(columns)} columns. Leave "
                "these options out, or the hard negatives: dataset.select_columns(['anchor', 'positive', 'label'])."
            )

    @contextmanager
    def _training(self) -> Iterator[Objective]:
        # The trainer wraps the model in DistributedDataParallel, not its loss.
        names = ("predictors", "losses", "tau_losses", "risks", "penalties")
        self._replicas.synchronise(nn.ModuleList(getattr(self.objective, name) for name in names))
        try:
            self.objective._transaction.refuse_uncommitted()
        except RuntimeError as error:
            raise RuntimeError(
                "expected a trainer that writes the memory after each step, received one that did not. Write "
                "SentenceTransformerTrainer(..., loss=loss, callbacks=[loss.callback()])."
            ) from error
        yield self.objective

    @contextmanager
    def _held_out(self) -> Iterator[Objective]:
        """A copy of the objective in evaluation mode: another thread may train meanwhile."""
        # The trainer puts its model in evaluation mode, but not its loss.
        objective = shadow_copy(self.objective, sharing=self.model)
        parts = objective.predictors, objective.losses, objective.tau_losses, objective.risks
        objective._transaction = Transaction(*parts)
        for part in objective.modules():
            if isinstance(part, HostAdapter):
                part.objective_trains = False
        with evaluating(objective):  # not by `eval()`: a layer's own may write into its weights, as LoRA's do
            yield objective


def number_samples(dataset: "Dataset") -> "Dataset":
    """A data set with a further column "label", the number of each row.

    A loss of sentence-transformers receives sample numbers only as labels. Number the data set once, before it is
    shuffled or filtered: a number must mean the same row in every epoch and run.

    Args:
        dataset: a `datasets.Dataset`.

    Raises:
        TypeError: a data set without rows that can be counted, such as a stream.
        ValueError: it has a column already that the trainer takes for labels.

    Example:
        >>> import datasets
        >>> pairs = datasets.Dataset.from_dict({"anchor": ["a", "b"], "positive": ["A", "B"]})
        >>> number_samples(pairs)["label"][:]
        [0, 1]
    """
    if not (hasattr(dataset, "add_column") and hasattr(dataset, "__len__")):
        raise TypeError(
            f"expected a datasets.Dataset, received {type(dataset).__name__}, whose rows have no numbers. Number each "
            "split by itself; give a stream a column 'label' of its own, the same in every epoch "
            "(dro_temp.datasets.SampleTable makes numbers of keys)."
        )
    taken = [name for name in dataset.column_names if name in _LABELS]
    if taken:
        raise ValueError(
            f"expected a data set without a column of labels, received one with {taken[0]!r}, of which the trainer "
            f"passes only one on. Write dataset.remove_columns({taken[0]!r}) first."
        )
    return dataset.add_column("label", list(range(len(dataset))))


def _leave_model_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix + _HOST)]:
        del state[name]


def _do_not_miss_model(module: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [key for key in keys.missing_keys if _HOST not in key]


def _memory_callback(
    loss: RobustRankingLoss, name: str, resume_from: str | os.PathLike[str] | None
) -> "TrainerCallback":
    """What the trainer does not do for a loss: commit its memory after each step, save it, load it again.

    `name` is that of the file in a checkpoint's folder, and of the entry in the trainer's own state.
    """
    objective = loss.objective
    use = "whose trainer runs the callback"
    base: Any = optional_module("transformers", use, extra="clip").TrainerCallback

    class MemoryCallback(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            objective.discard()
            run = _run_of(state, name)
            if state.global_step > 0:
                file = Path(resume_from or _folder(args, state)) / name
                saved = _load(file)
                if run is None or (saved["run"], saved["step"]) != (run, state.global_step):
                    raise ValueError(
                        f"expected the loss of the run that is resumed, at step {state.global_step}, received in "
                        f"{str(file)!r} that of another run, at step {saved['step']}. Write loss.callback(resume_from="
                        "folder) with the folder that trainer.train(resume_from_checkpoint=folder) is given."
                    )
                loss.load_state_dict(saved["loss"])
            # An id in the trainer's own file tells this run's checkpoints from those of others.
            state.stateful_callbacks[name] = {"args": {}, "attributes": {"run": run or uuid.uuid4().hex}}

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if getattr(kwargs.get("optimizer"), "step_was_skipped", False):  # by a gradient scaler
                objective.discard()
            elif objective.pending:  # unless a CompositionalOptimizer has committed it already
                objective.commit()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.should_save:
                saved = {"run": _run_of(state, name), "step": state.global_step, "loss": loss.state_dict()}
                with whole_file(_folder(args, state) / name) as file:
                    torch.save(saved, file)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.load_best_model_at_end and state.best_model_checkpoint is not None:
                loss.load_state_dict(_load(Path(state.best_model_checkpoint) / name)["loss"])

    return MemoryCallback()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _run_of(state: Any, name: str) -> str | None:
    run: str | None = state.stateful_callbacks.get(name, {}).get("attributes", {}).get("run")
    return run


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(
            f"expected the loss in {str(path)!r}, received a checkpoint without it: a loss that starts afresh would "
            "not match the model. Resume from a checkpoint that was saved with loss.callback(); if it is in another "
            "folder, write loss.callback(resume_from=folder); if the save of this one was interrupted, remove it and "
            "resume from the one before."
        )
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved
