"""Time of a decode step of vLLM's engine with and without temperatures, interleaved; medians of ratios.

    VLLM_ENABLE_V1_MULTIPROCESSING=0 .venv-serving/bin/python -m benchmarks.serving --model FOLDER --out FILE

The same engine generates with temperatures and without, in turns: by the request's switch for a network of logits or
statistics, by taking the network from the model for one of hidden states. The model is a plain copy of
SmolLM2-135M-Instruct (`tests/support/smollm2.py`), the network random.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

TOKENS = 16


def _without(model):
    model._taken, model.__dict__["_served_tempnet"] = model.__dict__["_served_tempnet"], None


def _with(model):
    model.__dict__["_served_tempnet"] = model._taken


def main() -> None:
    """Measure one kind of network and add it to a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--inputs", default="statistics")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    import torch
    from smollm2 import random_tempnet
    from transformers import AutoModelForCausalLM

    inputs = tuple(args.inputs.split("+"))
    inputs = inputs[0] if len(inputs) == 1 else inputs
    prompt = list(range(1000, 1032))
    with tempfile.TemporaryDirectory() as folder:
        language = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        random_tempnet(language, inputs, prompt).save_pretrained(folder)
        del language
        os.environ["DRO_TEMP_TEMPNET"] = folder
        from vllm import LLM, SamplingParams

        engine = LLM(args.model, dtype="float32", max_model_len=128, enforce_eager=True, max_num_seqs=8)
        in_model = "hidden" in inputs
        results = {}
        for batch in args.batches:

            def seconds(on: bool, batch: int = batch) -> float:
                extra = None if in_model or on else {"dro_temp": False}
                params = SamplingParams(
                    temperature=1.0, seed=0, max_tokens=TOKENS, ignore_eos=True, extra_args=extra
                )
                start = time.perf_counter()
                engine.generate(
                    [{"prompt_token_ids": prompt[: 8 + i]} for i in range(batch)], params, use_tqdm=False
                )
                return (time.perf_counter() - start) / TOKENS

            ratios, times = [], {True: [], False: []}
            for round_ in range(args.rounds + 2):
                for on in (True, False) if round_ % 2 else (False, True):
                    if in_model and not on:
                        engine.apply_model(_without)
                    times[on].append(seconds(on))
                    if in_model and not on:
                        engine.apply_model(_with)
                if round_ < 2:  # warm up
                    times = {True: [], False: []}
                else:
                    ratios.append(times[True][-1] / times[False][-1])
            quartiles = statistics.quantiles(ratios, n=4)
            results[batch] = {
                "ratio": [round(x, 4) for x in quartiles],
                "ms_with": round(1e3 * statistics.median(times[True]), 2),
                "ms_without": round(1e3 * statistics.median(times[False]), 2),
            }
            print(args.inputs, batch, results[batch])
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    known[args.inputs] = {"rounds": args.rounds, "tokens": TOKENS, "batch": results}
    args.out.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
