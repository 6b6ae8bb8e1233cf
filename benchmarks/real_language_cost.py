"""Cost of temperatures on a real language model, SmolLM2-135M: of a decode step, of a training step, and of memory.

Interleaved on one thread (process time): every contender takes its turn in every round, and ratios are taken round by
round. `generate` samples 16 tokens after a prompt of 21, with its key-value cache.
Training steps are forward and backward without the optimizer. Each peak is the resident memory that the first step of
a fresh process adds. The model needs `pip install 'dro-temp[real]'`.

  python -m benchmarks.real_language_cost
  python -m benchmarks.real_language_cost --rounds 9 --tokens 128
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dro_temp as dt
from benchmarks.harness.memory import STATUS, _peak, _start_peak, in_fresh_process
from benchmarks.harness.results import save
from benchmarks.harness.timing import interleaved, machine, ratios
from dro_temp.cli.lm.models import load_model

TITLE = "temperatures on SmolLM2-135M-Instruct"
PROMPT = (
    "A bicycle is a human-powered vehicle with two wheels. Its history begins in the nineteenth century, when"
)
NEW = 16
#: Contenders of a training step, each group with the one that it is compared with first.
FROZEN = ("frozen: bare forward", "frozen: likelihood", "frozen: robust", "frozen: self-weighted")
JOINT = ("joint: fine-tuning without temperatures", "joint: robust with TempNet")
Step = Callable[[], Any]


def tempnet_of(model: Any) -> dt.TempNet:
    """What `dro-temp lm fit` builds."""
    torch.manual_seed(0)
    return dt.TempNet.for_lm(
        model, inputs=("hidden", "statistics"), tau_min=0.1, tau_max=2.0, tau_init=1.0, rho=5.0
    )


def training_step(name: str, model: Any, tokens: Tensor) -> Step:
    """One forward, and backward if something learns."""
    frozen = name in FROZEN
    model.requires_grad_(not frozen)
    if name == FROZEN[0]:

        def bare() -> None:
            with torch.no_grad():
                model(input_ids=tokens)

        return bare
    if name == JOINT[0]:

        def tuning() -> None:
            model.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()

        return tuning
    loss = {"likelihood": dt.LikelihoodLoss(), "self-weighted": dt.SelfWeightedLoss()}.get(
        name.rpartition(" ")[2], dt.KLRobustLoss(5.0)
    )
    objective = dt.Objective(dt.hosts.CausalLM(model, frozen=frozen), tempnet_of(model), loss)

    def step() -> None:
        objective.zero_grad()
        objective(input_ids=tokens).loss.backward()

    return step


def generation(model: Any, processors: list[Any], ids: Tensor) -> Step:
    """A prompt and so many sampled tokens after it."""

    def generate() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            min_new_tokens=NEW,
            max_new_tokens=NEW,
            logits_processor=processors,
        )

    return generate


def decoding(rounds: int) -> dict[str, list[float]]:
    """Seconds of `generate`, bare and with the network."""
    model, tokenizer = load_model("smollm2")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    hooked = copy.deepcopy(model)
    processor = dt.TemperatureLogitsProcessor(hooked, tempnet_of(hooked).eval())
    steps = {
        "generate": generation(model, [], ids),
        "generate with TempNet": generation(hooked, [processor], ids),
    }
    return interleaved(steps, rounds, repeats=1)


def training(names: tuple[str, ...], rounds: int, tokens: int) -> dict[str, list[float]]:
    """Seconds of a training step of each."""
    model, _ = load_model("smollm2")
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    return interleaved({name: training_step(name, copy.deepcopy(model), ids) for name in names}, rounds, 1)


def peak(name: str, tokens: int) -> int:
    """Bytes that the first step adds; call it in a fresh process."""
    torch.set_num_threads(1)
    model, _ = load_model("smollm2")
    full = torch.randint(model.config.vocab_size, (1, tokens))
    # Loads the kernels; of a small model, since pages that it frees would not be counted again.
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny = type(model)(type(model.config)(vocab_size=2048, num_key_value_heads=2, **sizes)).eval()
    training_step(name, tiny, torch.randint(2048, (1, 8)))()
    step = training_step(name, model, full)
    for parameter in model.parameters():  # the file is mapped: pages become resident when they are first read
        parameter.detach().sum()
    before = _start_peak("cpu")
    step()
    return _peak("cpu") - before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="rounds; each contender runs once in each")
    parser.add_argument("--tokens", type=int, default=256, help="tokens in a training step")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/real_language_cost.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds = [decoding(options.rounds)]
    seconds += [training(names, options.rounds, options.tokens) for names in (FROZEN, JOINT)]
    rows = []
    for group in seconds:
        first = next(iter(group))
        for name, row in ratios(group, first).items():
            memory = None
            if not name.startswith("generate") and STATUS.exists():
                memory = in_fresh_process(peak, name, options.tokens) / 2**20
            rows.append({"contender": name, "ratio_to": first, **row, "peak_mib": memory})
            shown = "" if memory is None else f"   {memory:.0f} MiB"
            print(
                f"{name:42} {row['median']:.3f} [{row['q1']:.3f}, {row['q3']:.3f}] {row['ms']:9.1f} ms{shown}"
            )
    content = {"machine": machine(), "tokens": options.tokens, "rounds": options.rounds, "contenders": rows}
    save(options.out, TITLE, "cpu", content)
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
