"""A Hugging Face causal language model as a host."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp.hosts._hooks import hooks_of_others
from dro_temp.hosts._index import as_index
from dro_temp.hosts.causal_lm.circumstances import Circumstances
from dro_temp.hosts.causal_lm.decoder import decoder_states, probe_decoder
from dro_temp.hosts.causal_lm.examples import logits_of, probe_options
from dro_temp.hosts.causal_lm.head import LmHead, catching, output_embeddings, words_of
from dro_temp.hosts.causal_lm.probe import probe_head, probe_shift
from dro_temp.hosts.labels import IGNORE, labelled_rows
from dro_temp.interfaces import HostAdapter, LinearScores, Rows

_ADVICE = (
    "Use the tokenizer that the model was trained with, or model.resize_token_embeddings(len(tokenizer)); "
    "label what is not to count -100."
)


class CausalLM(HostAdapter):
    r"""Any `AutoModelForCausalLM`: one row per token to predict, scored by the model's own logits.

    $s_{ij}$ is the logit of word j at position i, soft-capped or scaled as the model does it; the target is the
    label that the model's own loss would compare it with. Where the head is linear, rows are `LinearScores`: the
    logits are not materialised, and the head's forward is skipped. What the model does is found out by running it
    on a few tokens when the host is made, and again where the head or the configuration's numbers have changed since;
    where a hook changes what the head returns, logits are the model's own. Models that look at later tokens unless
    told otherwise (XLNet, XLM, CPM-Ant, BERT with `is_decoder=False`) are taken as they are: say to them what they
    are to look at.

    Args:
        model: the model, also LoRA-wrapped, tied, in bfloat16 or with gradient checkpointing.
        frozen: True to leave the model alone and train a TempNet only.
        shifted: True if position t predicts label t + 1, False if label t; None: as the model's own loss does.

    Raises:
        TypeError: an encoder-decoder, or a model without a head.

    Example:
        >>> import torch, dro_temp as dt, transformers
        >>> config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
        >>> host = dt.hosts.CausalLM(transformers.GPT2LMHeadModel(config), frozen=True)
        >>> host(torch.randint(99, (2, 8)))["token"].scores.shape
        (14, 99)
    """

    views = ("token",)

    def __init__(self, model: nn.Module, *, frozen: bool = False, shifted: bool | None = None) -> None:
        super().__init__(frozen=frozen)
        self.model = model
        self._changing_hooks: tuple[int, ...] = ()  # on the head, whose output is not the product
        self._probe()
        self.options = probe_options(model)
        self.shifted = probe_shift(model) if shifted is None else shifted

    def rows(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        index: Any = None,
        **inputs: Any,
    ) -> dict[str, Rows]:
        """One row per position that predicts a token.

        Args:
            input_ids: [batch length]; or pass `inputs_embeds` with `labels`.
            attention_mask: [batch length], 0 at padding, which is not predicted and predicts nothing.
            labels: [batch length], where the model's own loss wants them, -100 where nothing is to be predicted;
                if None, every position predicts the next token.
            index: numbers in the data set, of the texts, [batch], or of what the labels say, [batch length]; also as
                lists or an array.
            **inputs: whatever else the model takes.

        Raises:
            ValueError: no tokens, tokens that the model does not know, or labels for other positions than the model's.
        """
        shifted = self.shifted or labels is None
        labels = _at_least_two(input_ids if labels is None else labels)
        if input_ids is not None:
            inputs["input_ids"] = input_ids
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        head, hidden, logits = self._run(inputs)
        scored = hidden if logits is None else logits
        assert scored is not None
        _refuse_other_positions(labels, scored)
        here, there = (slice(-1), slice(1, None)) if shifted else (slice(None), slice(None))
        target = labels[:, there]
        mask = None
        if attention_mask is not None and attention_mask.shape == labels.shape:
            real = attention_mask != 0  # at padding, a position is not predicted and predicts nothing
            mask = (real[:, here] & real[:, there]).flatten()
        index = as_index(index, target.device)
        if index is not None:
            index = (index[:, None].expand_as(labels) if index.dim() == 1 else index)[:, there].flatten()
        features = None if hidden is None else hidden[:, here].flatten(0, 1)
        scores: Tensor | LinearScores
        if logits is None:
            assert features is not None
            scores = LinearScores(features, head.weight, head.bias, head.transform)
        else:
            scores = logits[:, here].flatten(0, 1)
        return {"token": labelled_rows(scores, target.flatten(), features, index, mask=mask, advice=_ADVICE)}

    def _run(self, inputs: dict[str, Any]) -> tuple[LmHead, Tensor | None, Tensor | None]:
        """The head, what it was given, and the logits; None for those that the head's weight stands for."""
        head = self._current_head()
        hooked = head.module._forward_hooks or head.module._forward_pre_hooks or self.model._forward_hooks
        if torch.compiler.is_compiling() and head.linear and self.decodes and not hooked:
            # A hook of ours would break the graph, and those of others would not run.
            return head, decoder_states(self.model, {**self.options, **inputs}), None
        with catching(head.module, skip=head.linear and head.skippable) as caught:
            try:
                output = self.model(**{**self.options, **inputs})
            except IndexError as error:
                raise self._explained(error, inputs.get("input_ids")) from error
        if head.linear and caught.changed:  # by a hook: as long as it is there, logits are the model's own
            self._changing_hooks = hooks_of_others(head.module, "_forward_hooks")
            return self._run(inputs)
        if head.linear and caught.once is not None:
            return head, caught.once, None
        logits = logits_of(output)
        hidden = caught.once
        placed = hidden is not None and hidden.shape[:2] == logits.shape[:2]
        return head, hidden if placed else None, logits

    def _probe(self) -> None:
        self._circumstances = Circumstances(self.model)
        self.head = probe_head(self.model)
        self.decodes = probe_decoder(self.model)
        self._changing_hooks = ()

    def _current_head(self) -> LmHead:
        """The head; probed again where adapters were added, the vocabulary was resized, a hook was put on it, ..."""
        if torch.compiler.is_compiling():
            changed = output_embeddings(self.model) is not self.head.module
        else:
            changed = self._circumstances.changed(self.model)
        if changed:
            self._probe()
        head = self.head
        if self._changing_hooks and self._changing_hooks == hooks_of_others(head.module, "_forward_hooks"):
            return replace(head, linear=False)
        return head

    def _explained(self, error: IndexError, tokens: Tensor | None) -> Exception:
        if tokens is None or int(tokens.max()) < self.vocabulary:
            return error
        return ValueError(
            f"expected tokens from 0 to {self.vocabulary - 1}, received {int(tokens.max())}. {_ADVICE}"
        )

    @property
    def vocabulary(self) -> int:
        """Number of words."""
        return words_of(self.head.module)


def _at_least_two(labels: Tensor | None) -> Tensor:
    if labels is None or labels.dim() != 2 or labels.shape[1] < 2:
        raise ValueError(
            "expected input_ids (or inputs_embeds and labels) of shape [batch, length >= 2], received "
            f"{None if labels is None else list(labels.shape)}. Tokenise the text, at least two tokens of it."
        )
    return labels


def _refuse_other_positions(labels: Tensor, scored: Tensor) -> None:
    if scored.shape[:2] != labels.shape:
        raise ValueError(
            f"expected labels of shape {list(scored.shape[:2])}, one per position of the model, received "
            f"{list(labels.shape)}. Where the model puts images or virtual tokens before the text, pass labels that "
            f"are {IGNORE} there."
        )
