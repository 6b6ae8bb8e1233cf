"""Generate with a run's TempNet."""

from pathlib import Path

from dro_temp.cli.needs import needed
from dro_temp.cli.options import check_above_zero, check_least, check_room, check_seed
from dro_temp.cli.run import Run


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
        prompt: what to go on from.
        tokens: how many to generate.
        temperature: multiplies the predicted temperatures.
        top_p: sample from the smallest set of tokens with this probability.
        greedy: take the most likely token; temperatures then change nothing.
        seed: of the sampling.
    """
    from dro_temp.integrations.transformers import TemperatureLogitsProcessor

    check_least("tokens", tokens)
    check_above_zero("temperature", temperature)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(
            f"expected --top_p above 0 and at most 1, received --top_p {top_p}. Pass --top_p 0.9, say."
        )
    check_seed(seed)
    model, tokenizer, tempnet, _ = Run(run).load()
    needed("transformers").set_seed(seed)
    given = tokenizer(prompt, return_tensors="pt", verbose=False).to(model.device)
    length = given["input_ids"].shape[1]
    if length == 0:
        raise ValueError(
            "expected a prompt of at least one token, received an empty one. Type dro-temp lm generate RUN 'some text'."
        )
    check_room(model.config, length, tokens)
    processor = TemperatureLogitsProcessor(model, tempnet)
    sampling = {} if greedy else {"temperature": temperature, "top_p": top_p, "top_k": 0}
    out = model.generate(
        **given,
        max_new_tokens=tokens,
        do_sample=not greedy,
        logits_processor=[processor],
        pad_token_id=tokenizer.eos_token_id,
        **sampling,
    )
    print(tokenizer.decode(out[0], skip_special_tokens=True))
