"""Fine-tuning with sentence-transformers' own trainer, and NDCG@10 by its own evaluator."""

import tempfile
import time
import warnings
from typing import Any

import sentence_transformers as st
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from benchmarks.studies.text_retrieval.data import Pairs, encoder, load
from benchmarks.studies.text_retrieval.methods import Method
from dro_temp.integrations.sentence_transformers import RobustRankingLoss, number_samples


def ndcg(model: st.SentenceTransformer, pairs: Pairs) -> dict[str, float]:
    """NDCG@10 and R@1 in percent; equal docstrings have several functions."""
    functions = list(dict.fromkeys(function for _, function in pairs))
    number = {function: str(i) for i, function in enumerate(functions)}
    relevant: dict[str, set[str]] = {}
    for docstring, function in pairs:
        relevant.setdefault(docstring, set()).add(number[function])
    queries = {str(i): docstring for i, docstring in enumerate(relevant)}
    evaluator = InformationRetrievalEvaluator(
        queries,
        {i: function for function, i in number.items()},
        {i: relevant[docstring] for i, docstring in queries.items()},
        ndcg_at_k=[10],
        accuracy_at_k=[1],
        precision_recall_at_k=[1],
        mrr_at_k=[10],
        map_at_k=[10],
        score_functions={"cosine": st.util.cos_sim},
        write_csv=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = evaluator(model)
    return {"ndcg10": 100 * found["cosine_ndcg@10"], "r1": 100 * found["cosine_accuracy@1"]}


def trained(
    method: Method | None,
    seed: int,
    options: dict[str, float],
    *,
    tuning: bool,
    epochs: int,
    size: int,
    bf16: bool,
) -> dict[str, Any]:
    """A run's result; None for the encoder as it is. A trial does not touch the test data."""
    start = time.process_time()
    torch.manual_seed(seed)
    model = encoder()
    losses: list[float] = []
    if method is not None:
        losses = _fit(model, method, seed, options, epochs=epochs, size=size, bf16=bf16)
    seconds = time.process_time() - start
    validation = ndcg(model, load("validation", seed))
    result: dict[str, Any] = {
        "chosen_by": -validation["ndcg10"],
        "validation": validation,
        "seconds": seconds,
        "losses": losses,
    }
    if not tuning:
        result["metrics"] = ndcg(model, load("test", seed))
    return result


def _fit(
    model: st.SentenceTransformer,
    method: Method,
    seed: int,
    options: dict[str, float],
    *,
    epochs: int,
    size: int,
    bf16: bool,
) -> list[float]:
    order = torch.randperm(len(pairs := load("train", seed)), generator=torch.Generator().manual_seed(seed))
    chosen = [pairs[i] for i in order[:size].tolist()]
    data = Dataset.from_list([{"anchor": docstring, "positive": function} for docstring, function in chosen])
    loss: Any = method.build(model, len(data), options)
    callbacks, rates = [], {}
    if isinstance(loss, RobustRankingLoss):
        data, callbacks = number_samples(data), [loss.callback()]
        if list(loss.objective.predictors.parameters()):
            rates = {"predictors": 1e-3}
    with tempfile.TemporaryDirectory() as folder:
        arguments = st.SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=method.batch,
            learning_rate=options["lr"],
            learning_rate_mapping=rates,
            warmup_steps=0.1,
            lr_scheduler_type="linear",
            bf16=bf16,
            seed=seed,
            use_cpu=True,
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            # The package's advice for all of these losses: no text twice in a batch.
            batch_sampler="no_duplicates",
        )
        trainer = st.SentenceTransformerTrainer(model, arguments, data, loss=loss, callbacks=callbacks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train()
    return [round(each["loss"], 4) for each in trainer.state.log_history if "loss" in each]
