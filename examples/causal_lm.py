"""Predict a temperature per token for a frozen language model: train, compare, view, generate. No downloads."""

import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
import tyro
from offline_lm.config import Config
from offline_lm.model import LENGTH, small_gpt2
from offline_lm.training import train

import dro_temp as dt
from dro_temp.datasets import PythonText, token_blocks
from dro_temp.evaluation import evaluate_language
from dro_temp.plotting import text_page, token_temperatures


def run(c: Config) -> None:
    """All four parts."""
    c.out.mkdir(parents=True, exist_ok=True)
    texts = {split: PythonText(split, size=c.size) for split in ("train", "validation", "test")}
    tokenizer = texts["train"].tokenizer(c.vocabulary)
    blocks = {split: token_blocks(text.tokens(tokenizer), LENGTH) for split, text in texts.items()}

    torch.manual_seed(0)
    model = small_gpt2(c.vocabulary, tokenizer.eos_token_id)
    groups = [{"params": list(model.parameters()), "lr": 2e-3}]
    train(c.path("gpt2"), model, groups, lambda x: model(x, labels=x).loss, blocks["train"], c.steps)

    host = dt.hosts.CausalLM(model, frozen=True)
    bounds = {"tau_min": c.tau_min, "tau_max": c.tau_max, "tau_init": c.tau_init}
    tempnet = dt.TempNet.for_lm(model, inputs=c.inputs, rho=c.rho, **bounds)
    objective = dt.Objective(host, tempnet, dt.KLRobustLoss(c.rho))
    groups = objective.param_groups(lr=1e-2)
    train(c.path("tempnet"), tempnet, groups, lambda x: objective(input_ids=x).loss, blocks["train"], c.steps)
    tempnet.eval()

    some = {split: blocks[split][: c.eval_blocks].split(8) for split in ("validation", "test")}
    report = evaluate_language(
        host, tempnet, some["test"], validation=some["validation"], rho=c.rho, progress=True
    )
    print(f"\n{report.tokens} tokens of held-out files, rho = {c.rho}\n\n{report.table()}\n")

    text = texts["test"].texts[0][: c.shown]
    read = token_temperatures(host, tokenizer, tempnet, text, window=LENGTH)
    (c.out / "page.html").write_text(text_page(*read, title=texts["test"].files[0]), encoding="utf-8")
    print(f"the temperature of every token of a text: {c.out / 'page.html'}\n")

    processor = dt.TemperatureLogitsProcessor(model, tempnet)
    prompt = tokenizer(c.prompt, return_tensors="pt")
    print(tokenizer.decode(model.generate(
        **prompt, do_sample=True, top_k=0, max_new_tokens=c.new_tokens, logits_processor=[processor]
    )[0]))  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    config = tyro.cli(Config, args=args, prog="causal_lm.py")
    if config.quick:
        config = replace(config, steps=20, size=400_000, eval_blocks=8, shown=300, new_tokens=8)
    try:
        run(config)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from the last checkpoint (every 50 steps)")
        return 130
    except ValueError as error:
        print(f"causal_lm.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
