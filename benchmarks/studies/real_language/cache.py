"""The frozen model, run once: hidden states, statistics and curves of every token, kept in files.

python -m benchmarks.studies.real_language.cache --model FOLDER --manual-pages FOLDER
"""

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dro_temp as dt
from benchmarks.studies.common.runs import stored
from benchmarks.studies.real_language import texts
from benchmarks.studies.real_language.curves import (
    TAU_MAX,
    TAU_MIN,
    Curves,
    log_sum_exp_curve,
)
from dro_temp.functional.statistics import ScoreProfile, score_profile

LENGTH = 256
#: Tokens of each half of a text of two kinds, and their number for each ordered pair of kinds.
HALF, PER_PAIR = 128, 8
FOLDER = Path("runs/real_language")


@dataclass(frozen=True)
class Tokens:
    """Predicted tokens of one split.

    Args:
        curves: of their scores.
        hidden: [n d], the head's input.
        profile: the statistics that predictors read.
        kind: number of each token's kind.
        document: number of each token's document.
        position: of the token that is predicted, in its document.
        previous: the token before it, whose hidden state predicts it.
        kinds: names of the kinds.
    """

    curves: Curves
    hidden: Tensor
    profile: ScoreProfile
    kind: Tensor
    document: Tensor
    position: Tensor
    previous: Tensor
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kind)

    def statistics(
        self, rows: Tensor | slice = slice(None), head: Tensor | None = None
    ) -> dt.interfaces.ScoreStatistics:
        """Those of some rows, as a streaming loss would give them to a predictor; projections need the head."""
        profile = ScoreProfile(*(column[rows] for column in self.profile))
        project = None if head is None else partial(_projected, self.hidden[rows], head)
        return _StoredStatistics(self.curves.outcomes, profile, project=project)


class _StoredStatistics(dt.interfaces.ScoreStatistics):
    """Statistics whose scores are not kept."""

    def __init__(self, outcomes: int, profile: ScoreProfile, **options: Any) -> None:
        super().__init__(
            torch.zeros(1, 1).expand(len(profile.mean), outcomes), profile=lambda: profile, **options
        )

    def norm_about(self, centre: Tensor | None) -> Tensor:
        p = self.profile
        return p.possible.sqrt() * torch.hypot(p.std, p.mean if centre is None else p.mean - centre)


def _projected(hidden: Tensor, head: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
    """`(scores - shift) @ weight.T` of the scores `hidden @ head.T`."""
    projected = torch.nn.functional.linear(hidden, weight @ head)
    return projected if shift is None else projected - shift[:, None] * weight.sum(1)


def load(split: str, folder: Path = FOLDER) -> Tokens:
    """A split that `main` has stored: "train", "validation", "test" or "borders"."""
    content = torch.load(folder / f"{split}.pt", weights_only=True)
    curves = Curves(*(content[name] for name in ("value", "slope", "target", "mean")), content["outcomes"])
    profile = ScoreProfile(*content["profile"].unbind(1))
    rest = {name: content[name] for name in ("hidden", "kind", "document", "position", "previous")}
    return Tokens(curves, profile=profile, kinds=tuple(content["kinds"]), **rest)


# --- running the model ---


@torch.no_grad()
def run(model: Any, sequences: Tensor, batch: int = 8) -> dict[str, Tensor]:
    """What is kept of each predicted token of sequences [k length], k * (length - 1) rows."""
    torch.set_flush_denormal(True)  # the squares of small exponentials
    curve = _compiled()
    parts: dict[str, list[Tensor]] = {}
    for ids in sequences.split(batch):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
        for h, target in zip(hidden.split(16), ids[:, 1:].flatten().split(16), strict=True):
            scores = torch.nn.functional.linear(h, model.lm_head.weight)
            profile = score_profile(scores)
            below = scores - profile.row_max[:, None]
            value, slope = curve(below)
            reached = below.gather(1, target[:, None]).squeeze(1)
            kept = {"value": value, "slope": slope, "target": reached, "mean": profile.mean - profile.row_max}
            for name, x in {**kept, "hidden": h, "profile": torch.stack(profile, 1)}.items():
                parts.setdefault(name, []).append(x.clone())
        parts.setdefault("previous", []).append(ids[:, :-1].flatten())
    rows, steps = sequences.shape[0], sequences.shape[1] - 1
    return {name: torch.cat(each) for name, each in parts.items()} | {
        "document": torch.arange(rows).repeat_interleave(steps),
        "position": torch.arange(1, steps + 1).repeat(rows),
    }


@functools.cache
def _compiled() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The curve with its octaves fused, five times as fast; as it is where there is no compiler."""
    from benchmarks.studies.real_language import curves

    curves._octaves = torch.compile(curves._octaves, dynamic=True)
    return log_sum_exp_curve


def border_sequences(
    documents: dict[str, list[tuple[texts.Document, list[int]]]],
) -> tuple[list[str], list[list[int]]]:
    """Halves of two test documents of different kinds, one after the other; names "a > b" and their tokens."""
    names, sequences = [], []
    for one in documents:
        for other in documents:
            if one != other:
                for k in range(PER_PAIR):
                    names.append(f"{one} > {other}")
                    sequences.append(documents[one][k][1][:HALF] + documents[other][k + PER_PAIR][1][:HALF])
    return names, sequences


def interpolation_error(model: Any, tokens: Tokens, rows: int = 400) -> dict[str, float]:
    """Largest difference of interpolated from exact numbers, over random temperatures within the bounds."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(tokens), generator=generator)[:rows]
    curves = tokens.curves[some]
    tau = TAU_MIN * (TAU_MAX / TAU_MIN) ** torch.rand(rows, generator=generator)
    with torch.no_grad():
        scores = torch.nn.functional.linear(tokens.hidden[some], model.lm_head.weight).double()
    below = scores - scores.amax(1, keepdim=True)
    wide = tau.double()
    exact = (below / wide[:, None]).logsumexp(1)
    p = (below / wide[:, None]).softmax(1)
    p_target = (curves.target.double() / wide - exact).exp()
    brier = p.square().sum(1) - 2 * p_target + 1
    return {
        "log_sum_exp": float((curves.log_sum_exp(1 / tau) - exact).abs().amax()),
        "brier": float((curves.brier(tau) - brier).abs().amax()),
    }


def model_of(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The language model in a folder, frozen."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)


def tokenizer_of(folder: Path) -> Any:
    """Its tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Options of every command of this study."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the language model")
    parser.add_argument("--manual-pages", type=Path, default=Path("/usr/share/man"), help="with German pages")
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder of what is stored (default: %(default)s)"
    )
    return parser


def main() -> None:
    """Run the model over all documents."""
    options = arguments(__doc__).parse_args()
    tokenizer = tokenizer_of(options.model)
    model = model_of(options.model)
    found = texts.splits(
        options.manual_pages, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], LENGTH
    )
    options.out.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {"length": LENGTH}
    for split, documents in found.items():
        kinds = list(documents)
        sequences = [ids for kind in kinds for _, ids in documents[kind]]
        numbers = [k for k, kind in enumerate(kinds) for _ in documents[kind]]
        about[split] = {
            "documents": {kind: len(documents[kind]) for kind in kinds},
            "groups": {kind: len({d.group for d, _ in documents[kind]}) for kind in kinds},
            "checksum": texts.checksum(sequences),
        }
        _store(options.out / f"{split}.pt", model, kinds, sequences, numbers)
    names, sequences = border_sequences(found["test"])
    pairs = list(dict.fromkeys(names))
    _store(options.out / "borders.pt", model, pairs, sequences, [pairs.index(name) for name in names])
    about["error"] = interpolation_error(model, load("test", options.out))
    print(stored(options.out / "cache.json", lambda: about))


def _store(file: Path, model: Any, kinds: list[str], sequences: list[list[int]], numbers: list[int]) -> None:
    if file.exists():
        return
    start = time.perf_counter()
    content = run(model, torch.tensor(sequences))
    kind = torch.tensor(numbers)[content["document"]]
    content |= {"kind": kind, "kinds": kinds, "outcomes": model.lm_head.weight.shape[0]}
    torch.save(content, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)
    print(f"{file.name}: {len(kind):,} tokens in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
