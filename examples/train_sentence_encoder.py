"""Train a sentence encoder to retrieve functions by their docstrings, on the standard library. No downloads."""

import ast
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import sentence_transformers as st
import torch
import tyro
from datasets import Dataset
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

import dro_temp as dt
from dro_temp.datasets import PythonText
from dro_temp.evaluation import retrieval_recall
from dro_temp.integrations.sentence_transformers import RobustRankingLoss, number_samples


@dataclass(frozen=True)
class Options:
    """Pairs of first docstring line and signature, trained with sentence-transformers' own trainer."""

    size: int = 6_000_000  # characters of source text
    epochs: int = 5  # passes over the pairs
    batch_size: int = 64  # batch size
    lr: float = 0.1  # learning rate of the encoder
    tau_lr: float = 1e-3  # learning rate of the networks that predict temperatures
    rho: float = 2.0  # radius of the robust loss in nats
    out: Path = Path("runs/sentence_encoder")  # folder for the checkpoints
    resume: bool = False  # continue from the last checkpoint
    quick: bool = False  # less text, two epochs


def pairs(source: PythonText):
    trees = map(ast.parse, source.texts[:-1])  # the last file may be cut
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            yield docstring.splitlines()[0], f"{node.name}({ast.unparse(node.args)})"


def recall(model: st.SentenceTransformer, held_out: list) -> str:
    queries, functions = (model.encode(list(x), convert_to_tensor=True) for x in zip(*held_out, strict=True))
    lines = [line for line, _ in held_out]
    label = torch.tensor([lines.index(line) for line in lines])  # equal lines are one label
    recalls = retrieval_recall(queries, functions, label, label, ks=(1, 5, 10))
    return ", ".join(f"R@{k} {share:.1f} %" for k, share in recalls.items())


def run(o: Options) -> None:
    sources = [PythonText(split, size=o.size) for split in ("train", "test")]
    train, test = (list(dict.fromkeys(pairs(source))) for source in sources)
    torch.manual_seed(0)
    words = sources[0].tokenizer(1024 if o.quick else 4096).backend_tokenizer
    model = st.SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=256), Normalize()])
    print(f"{len(train)} pairs; of {len(test)} others, before: {recall(model, test)}")
    data = number_samples(Dataset.from_list([{"anchor": a, "positive": b} for a, b in train]))
    tempnets = {view: dt.TempNet(256, tau_min=0.02, tau_max=0.3) for view in RobustRankingLoss.views}
    robust = {view: dt.KLRobustLoss(o.rho, estimator=dt.LogMovingAverage(len(data))) for view in tempnets}
    loss = RobustRankingLoss(model, tempnets, robust)
    args = st.SentenceTransformerTrainingArguments(
        str(o.out), num_train_epochs=o.epochs, per_device_train_batch_size=o.batch_size, save_strategy="epoch",
        learning_rate=o.lr, learning_rate_mapping={"predictors": o.tau_lr}, dataloader_pin_memory=False)  # fmt: skip
    st.SentenceTransformerTrainer(model, args, data, loss=loss, callbacks=[loss.callback()]).train(o.resume)
    tau = ", ".join(f"{name} {x:.3f}" for name, x in loss.metrics.items() if "/tau_" in name)
    print(f"after: {recall(model, test)}\ntemperatures of the last batch: {tau}")


def main(args: list[str] | None = None) -> int:
    try:
        o = tyro.cli(Options, args=args, prog="train_sentence_encoder.py")
        run(replace(o, size=1_500_000, epochs=2) if o.quick else o)
    except (KeyboardInterrupt, ValueError, FileNotFoundError) as error:
        print(f"train_sentence_encoder.py: {str(error) or 'stopped; --resume continues'}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
