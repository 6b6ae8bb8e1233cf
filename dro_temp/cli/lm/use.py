"""What a finished run is used for: `eval` measures its TempNet, `generate` samples with it, `view` shows it."""

import json
from pathlib import Path
from typing import Any

import torch

from dro_temp._checks import check_count, check_positive
from dro_temp._files import check_writable, whole_file
from dro_temp.cli.lm.options import check_radius, check_room
from dro_temp.cli.lm.run import LmRun
from dro_temp.cli.lm.text import PYTHON, blocks, check_vocabulary, documents
from dro_temp.cli.messages import require
from dro_temp.cli.options import check_seed
from dro_temp.cli.pages import page_path, write_page
from dro_temp.datasets import PythonText
from dro_temp.evaluation import evaluate_language
from dro_temp.hosts import CausalLM
from dro_temp.plotting import text_page, token_temperatures
from dro_temp.predictors import ConstantTemperature, TempNet


def evaluate(
    run: Path,
    data: str | None = None,
    column: str = "text",
    limit: int = 128,
    batch: int = 8,
    rho: float | None = None,
    tasks: tuple[str, ...] = (),
    task_folder: Path | None = None,
) -> None:
    """Perplexity, calibration and amortisation gap of a run's TempNet; lm-eval tasks with and without it.

    Args:
        run: the folder that `fit` made.
        data: held-out text, as `fit` takes it; half chooses the constant temperatures, half is the test. By default the
            test split of Python's source if that was trained on, else the data that was.
        column: where records hold their text.
        limit: blocks of text that are used.
        batch: blocks at a time.
        rho: radius of the robust loss; by default the one trained with, if there was one.
        tasks: lm-eval tasks; each is run at tau = 1 and with the TempNet.
        task_folder: where tasks of your own are.
    """
    check_count("--limit", limit, minimum=2)
    check_count("--batch", batch)
    if task_folder is not None and not task_folder.is_dir():
        raise ValueError(f"expected a folder of tasks, received --task_folder {task_folder}. Check the path.")
    check_writable(run)
    model, tokenizer, tempnet, options = LmRun(run).load()
    host = CausalLM(model, frozen=True)
    check_vocabulary(tokenizer, host.vocabulary)
    source = data or options["data"]
    texts = documents(source, split="test" if source == PYTHON else "train", column=column)
    rows = blocks(texts, tokenizer, options["block"])[:limit]
    if len(rows) < 2:
        raise ValueError(
            f"expected at least two blocks of {options['block']} tokens, received {len(rows)}. Pass more text: --data."
        )
    if rho is not None:
        check_radius(rho, host.vocabulary)
    radius = tempnet.rho if rho is None else rho
    half = len(rows) // 2
    report = evaluate_language(
        host,
        {"TempNet": tempnet},
        torch.split(rows[half:], batch),
        validation=torch.split(rows[:half], batch),
        rho=radius,
        progress=True,
    )
    trained_with = "trained for the likelihood, without a radius" if radius is None else f"rho = {radius:.4g}"
    print(f"\n{report.tokens} tokens, {trained_with}\n\n{report.table()}\n")
    if source == options["data"] and source != PYTHON:
        print("note: this text was trained on; pass --data for text that was not\n")
    results = {"data": source, **report.asdict()}
    if tasks:
        results["tasks"] = _run_tasks(model, tokenizer, tempnet, tasks, task_folder)
    results = json.loads(json.dumps(results), parse_constant=lambda nan: None)  # JSON itself has no NaN
    out = run / "eval.json"
    with whole_file(out) as file:
        file.write(json.dumps(results, indent=2, allow_nan=False).encode())
    print(f"wrote {out}")


def _run_tasks(
    model: Any, tokenizer: Any, tempnet: TempNet, tasks: tuple[str, ...], folder: Path | None
) -> dict[str, Any]:
    """Each task's numbers at tau = 1 and with the TempNet."""
    from dro_temp.integrations.lm_eval import tempered_lm

    manager = require("lm_eval.tasks").TaskManager(
        include_path=None if folder is None else str(folder), include_defaults=folder is None
    )
    results: dict[str, Any] = {}
    for name, predictor in (("tau = 1", ConstantTemperature(1.0)), ("TempNet", tempnet)):
        lm = tempered_lm(model, tokenizer, predictor, device=str(model.device))
        output = require("lm_eval").simple_evaluate(
            lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0
        )
        results[name] = {}
        for task, values in output["results"].items():
            numbers = {key: value for key, value in values.items() if isinstance(value, float)}
            results[name][task] = numbers
            shown = ", ".join(f"{key.partition(',')[0]} {value:.4f}" for key, value in numbers.items())
            print(f"{task}, {name}: {shown}")
    return results


def generate(
    run: Path,
    prompt: str,
    tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy: bool = False,
    seed: int = 0,
) -> None:
    """Generate text with a temperature of its own for every token.

    Args:
        run: the folder that `fit` made.
        prompt: the text to continue.
        tokens: how many to generate.
        temperature: multiplies the predicted temperatures.
        top_p: sample from the smallest set of tokens with this probability.
        greedy: take the most likely token; temperatures then change nothing.
        seed: of the sampling.
    """
    from dro_temp.integrations.transformers import TemperatureLogitsProcessor

    check_count("--tokens", tokens)
    check_positive("--temperature", temperature)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(
            f"expected --top_p above 0 and at most 1, received --top_p {top_p}. Pass --top_p 0.9, say."
        )
    check_seed(seed)
    model, tokenizer, tempnet, _ = LmRun(run).load()
    require("transformers").set_seed(seed)
    inputs = tokenizer(prompt, return_tensors="pt", verbose=False).to(model.device)
    length = inputs["input_ids"].shape[1]
    if length == 0:
        raise ValueError(
            "expected a prompt of at least one token, received an empty one. Type dro-temp lm generate RUN 'some text'."
        )
    check_room(model.config, length, tokens)
    sampling = {} if greedy else {"temperature": temperature, "top_p": top_p, "top_k": 0}
    out = model.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=not greedy,
        logits_processor=[TemperatureLogitsProcessor(model, tempnet)],
        pad_token_id=tokenizer.eos_token_id,
        **sampling,
    )
    print(tokenizer.decode(out[0], skip_special_tokens=True))


def view(
    run: Path, text: Path | None = None, out: Path | None = None, characters: int = 4000, k: int = 5
) -> None:
    """Write one web page that shows the temperature of every token of a text; it needs no network.

    Args:
        run: the folder that `fit` made.
        text: a file; by default a file of Python's source that was not trained on.
        out: the page; by default `page.html` in the run's folder.
        characters: of the text that are shown.
        k: candidates shown for each token, before and after its temperature.
    """
    check_count("--characters", characters)
    check_count("--k", k)
    page = page_path(run, out)
    model, tokenizer, tempnet, options = LmRun(run).load()
    if text is None:
        held_out = PythonText("test")
        shown, title = held_out.texts[0], held_out.files[0]
    elif text.is_file():
        shown, title = "\n\n".join(documents(str(text))), text.name
    else:
        raise ValueError(f"expected a text file, received {str(text)!r}, which is not there. Check --text.")
    host = CausalLM(model, frozen=True)
    read = token_temperatures(host, tokenizer, tempnet, shown[:characters], k=k, window=options["block"])
    write_page(page, text_page(*read, title=f"{title}, read by {options['model']}"))
