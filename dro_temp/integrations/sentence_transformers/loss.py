"""An objective as a loss of `SentenceTransformerTrainer`."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dro_temp.hosts import InChunks, SentenceTransformers
from dro_temp.hosts._modules import shadow_copy
from dro_temp.integrations._replicas import Replicas
from dro_temp.integrations._temperatures import TemperatureMoments
from dro_temp.integrations.sentence_transformers.keeper import loss_keeper
from dro_temp.interfaces import HostAdapter, RobustLoss, TemperaturePredictor
from dro_temp.interfaces.ledger import Ledger
from dro_temp.interfaces.modes import evaluating
from dro_temp.objective import Objective
from dro_temp.objective.parts import PerView

if TYPE_CHECKING:
    from transformers import TrainerCallback

_HOST = "objective.host."


class RobustRankingLoss(nn.Module):
    r"""A predictor and a robust loss as the loss of sentence-transformers' own trainer.

    Data are those of its `MultipleNegativesRankingLoss`: columns (anchor, positive), or (anchor, positive, negative_1,
    ...). The loss is the mean over two views, the rows of `hosts.SentenceTransformers`; with an `InfoNCELoss` at the
    temperature $\tau$ it is that of `MultipleNegativesRankingLoss` with `scale` $1/\tau$, the directions query_to_doc
    and doc_to_query, and partition_mode="per_direction". In several processes columns are gathered with gradient.

    The trainer trains the loss's own parameters: `learning_rate_mapping={"predictors": 1e-4}` gives temperatures a
    rate of their own. It neither writes nor saves what a loss remembers, which `callback` is for.

    Args:
        model: the `SentenceTransformer` that is trained.
        predictor: one for both views, "anchor" and "positive", or one per view.
        loss: one for both views, or, if it remembers samples, one per view.
        mini_batch_size: encode so many texts at a time, with the loss and gradient of the whole batch, as the package's
            `CachedMultipleNegativesRankingLoss` does; None: all at once.
        **options: of `Objective`, for example check_finite=False under a float16 gradient scaler.

    Attributes:
        metrics: what the objective would log of the last batch, such as "anchor/tau_mean"; the trainer adds up what a
            loss returns, so that they cannot be returned.

    Raises:
        TypeError: parts of another kind.
        ValueError: fewer than two columns; no sample numbers where they are needed, or numbers beyond a table; hard
            negatives where penalties or mini_batch_size compare pairs alone.
        RuntimeError: a trainer that does not write the memory.

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

    def __init__(
        self,
        model: nn.Module,
        predictor: PerView[TemperaturePredictor],
        loss: PerView[RobustLoss],
        *,
        mini_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        host: HostAdapter = SentenceTransformers(model)
        self.mini_batch_size = mini_batch_size
        if mini_batch_size is not None:
            host = InChunks(host, size=mini_batch_size)
        self.objective = Objective(host, predictor, loss, **options)
        self.metrics: dict[str, Tensor] = {}
        self.temperatures: TemperatureMoments | None = None  # for `log_temperatures`
        self._replicas = Replicas(1)
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
        """The loss of a batch; without gradient, that of held-out data, from which nothing is remembered.

        Args:
            sentence_features: the columns, tokenised: anchor, positive, hard negatives.
            labels: [n] the samples' numbers. Without gradient, only predictors that need numbers are given them.
        """
        columns = list(sentence_features)
        self._refuse(columns)
        anchor, positive, *negatives = columns
        batch = {"negatives": tuple(negatives), "index": self._numbers(labels)}
        if torch.is_grad_enabled():
            self._prepare()
            output = self.objective(anchor, positive, **batch)
        else:
            with self._held_out() as objective:
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
        """What the trainer needs beside the loss: `callbacks=[loss.callback()]`.

        It writes the memory when a step was taken, and drops what belongs to a step that a gradient scaler skipped. It
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
        folder = None if resume_from is None else Path(resume_from)
        return loss_keeper(self, self.objective, f"{name}.pt", folder)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""
        parts = {"predictor": self.objective.predictors, "loss": self.objective.losses}
        config: dict[str, Any] = {
            f"{view}_{part}": repr(modules[view]) for part, modules in parts.items() for view in self.views
        }
        return {**config, "mini_batch_size": self.mini_batch_size}

    @property
    def citation(self) -> str:
        """What the model card cites."""
        return _CITATION

    def _numbers(self, labels: Any) -> Any:
        """The labels, where they are numbers of samples, and a table reads them."""
        predictors = [p for p in self.objective.predictors.values() if isinstance(p, TemperaturePredictor)]
        wanted = any("index" in p.reads for p in predictors)
        # Held-out data have no place in a memory, and its numbers may be anything.
        if torch.is_grad_enabled() and self.training:
            wanted = wanted or bool(self.objective.memory_modules())
        if not wanted:
            return None
        if labels is None:
            raise ValueError(
                "expected sample numbers for a loss or predictor that remembers samples, received no labels. Write "
                "train_dataset=number_samples(dataset), which adds them as the column 'label', or use parts without "
                "memory."
            )
        return labels

    def _refuse(self, columns: list[Mapping[str, Any]]) -> None:
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

    def _prepare(self) -> None:
        """Before a forward that trains."""
        # The trainer wraps the model in DistributedDataParallel, not its loss.
        own = [self.objective.predictors, self.objective.losses, self.objective.penalties]
        self._replicas.watch(nn.ModuleList(own))
        try:
            self.objective._ledger.refuse_uncommitted()
        except RuntimeError as error:
            raise RuntimeError(
                "expected a trainer that writes the memory after each step, received one that did not. Write "
                "SentenceTransformerTrainer(..., loss=loss, callbacks=[loss.callback()])."
            ) from error

    @contextmanager
    def _held_out(self) -> Iterator[Objective]:
        """The objective in evaluation mode; a copy, since another thread may train meanwhile."""
        # The trainer puts its model in evaluation mode, not its loss: the model itself is left to it.
        objective = shadow_copy(self.objective, sharing=self.model)
        parts = objective.predictors, objective.losses, objective.tau_losses, objective.risks
        objective._ledger = Ledger(*parts)
        for part in objective.modules():
            if isinstance(part, HostAdapter):
                part.objective_trains = False
        with evaluating(objective):
            yield objective


def _leave_model_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix + _HOST)]:
        del state[name]


def _do_not_miss_model(module: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [key for key in keys.missing_keys if _HOST not in key]


_CITATION = """
@inproceedings{qiu2024tempnet,
    title = {To Cool or not to Cool? Temperature Network Meets Large Foundation Models via DRO},
    author = {Zi-Hao Qiu and Siqi Guo and Mao Xu and Tuo Zhao and Lijun Zhang and Tianbao Yang},
    booktitle = {International Conference on Machine Learning},
    year = {2024},
    eprint = {2404.04575},
    archivePrefix = {arXiv},
}
"""
