"""The part of a language model below its head, for graphs that cannot look at what a head is given."""

from typing import Any

import torch
from torch import Tensor, nn

from dro_temp.hosts.causal_lm.examples import Example, example_of
from dro_temp.hosts.causal_lm.head import catching, output_embeddings

_PADDING = 2  # positions of the example that a mask hides


@torch.no_grad()
def probe_decoder(model: nn.Module) -> bool:
    """True if the head is given just what `decoder_states` returns, with padding and without."""
    with example_of(model) as example:
        mask = torch.ones_like(example.tokens)
        mask[:, -_PADDING:] = 0
        return all(_is_all(example, inputs) for inputs in ({}, {"attention_mask": mask}))


def decoder_states(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The last hidden states of the model's decoder, [batch length d]."""
    output = model.get_decoder()(**inputs)  # type: ignore[operator]
    states: Tensor = output[0]
    return states


def _is_all(example: Example, inputs: dict[str, Any]) -> bool:
    tokens = {"input_ids": example.tokens, **example.options, **inputs}
    try:
        with catching(output_embeddings(example.model)) as caught:
            example(**inputs)
        with torch.random.fork_rng(devices={p.device.index for p in example.model.parameters() if p.is_cuda}):
            found, given = decoder_states(example.model, tokens), caught.once
    except Exception:  # whatever a model that is not ours may raise
        return False
    if not isinstance(found, Tensor) or given is None or found.dtype != given.dtype:
        return False
    return torch.equal(found, given)
