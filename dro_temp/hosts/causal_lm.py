"""A Hugging Face causal language model as a host."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp.hosts import model_head
from dro_temp.hosts._modules import foreign_hooks
from dro_temp.hosts.labels import IGNORE, as_index, labelled_rows
from dro_temp.interfaces import HostAdapter, LinearScores, Rows

_ADVICE = (
    "Use the tokenizer that the model was trained with, or model.resize_token_embeddings(len(tokenizer)); "
    "label what is not to count -100."
)


class CausalLM(HostAdapter):
    r"""Any `AutoModelForCausalLM`: one row per token to predict, scored by the model's own logits.

    $s_{ij}$ is the logit of word j at position i, soft-capped or scaled as the model does it; the target is the
    label that the model's own loss would compare it with. Where the head is linear, rows are `LinearScores`: the
    logits are not materialised, and the head's forward is skipped. What the model does is determined by running it
    on a few tokens when the host is made, and again after the head or the numbers of the configuration have changed;
    where a hook changes what the head returns, scores are the model's own logits. Models that attend to later tokens by
    default (XLNet, XLM, CPM-Ant, BERT with `is_decoder=False`) are not changed: pass the masks that they need.

    Args:
        model: the model, also LoRA-wrapped, tied, in bfloat16 or with gradient checkpointing.
        frozen: True to leave the model alone and train a TempNet only.
        shifted: True if position t predicts label t + 1, False if label t; None: as the model's own loss does.
        score_dtype: precision of logits in memory on a GPU, see `LinearScores`: torch.bfloat16 is that of a bfloat16
            model's own, and faster; None, float32, is for temperatures below 0.3.

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

    def __init__(
        self,
        model: nn.Module,
        *,
        frozen: bool = False,
        shifted: bool | None = None,
        score_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(frozen=frozen)
        self.model, self.score_dtype = model, score_dtype
        self._probe(shifted)

    def _probe(self, shifted: bool | None) -> None:
        self._snapshot = model_head.HeadSnapshot(self.model)
        with model_head.trial_run(self.model) as trial:
            self.options = trial.options
            self.shifted = model_head.probe_shift(trial) if shifted is None else shifted
            self.head = model_head.probe_head(self.model, trial)
            self.decodes = model_head.probe_decoder(trial)
        self._changing_hooks: tuple[int, ...] = ()  # on the head, whose output is not the product

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary."""
        return model_head.outcomes_of(self.head.module)

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
            labels: [batch length], aligned as for the model's own loss, -100 where nothing is to be predicted;
                if None, every position predicts the next token.
            index: numbers in the data set, of the texts, [batch], or of the labels, [batch length]; also as lists or
                an array.
            **inputs: whatever else the model takes.

        Raises:
            ValueError: no tokens, tokens outside the vocabulary, or labels for other positions than the model's.
        """
        shifted = self.shifted or labels is None
        labels = input_ids if labels is None else labels
        if labels is None or labels.dim() != 2 or labels.shape[1] < 2:
            raise ValueError(
                "expected input_ids (or inputs_embeds and labels) of shape [batch, length >= 2], received "
                f"{None if labels is None else list(labels.shape)}. Tokenise the text, at least two tokens of it."
            )
        inputs.update({} if input_ids is None else {"input_ids": input_ids})
        inputs.update({} if attention_mask is None else {"attention_mask": attention_mask})
        head, hidden, logits = self._run(inputs)
        scored: Any = hidden if logits is None else logits
        if scored.shape[:2] != labels.shape:
            raise ValueError(
                f"expected labels of shape {list(scored.shape[:2])}, one per position of the model, received "
                f"{list(labels.shape)}. Where the model puts images or virtual tokens before the text, pass labels "
                f"that are {IGNORE} there."
            )
        # Position t is scored by the logits at t, and its target is the label at t or, shifted, at t + 1.
        here, there = (slice(-1), slice(1, None)) if shifted else (slice(None), slice(None))
        target = labels[:, there]
        mask = None
        if attention_mask is not None and attention_mask.shape == labels.shape:
            real = attention_mask != 0  # at padding, a position is not predicted and predicts nothing
            mask = (real[:, here] & real[:, there]).flatten()
        if index is not None:
            index = as_index(index, target.device)
            index = (index[:, None].expand_as(labels) if index.dim() == 1 else index)[:, there].flatten()
        features = None if hidden is None else hidden[:, here].flatten(0, 1)
        scores = scored[:, here].flatten(0, 1)
        if logits is None:
            scores = LinearScores(
                scores, head.weight, head.bias, head.transform, score_dtype=self.score_dtype
            )
        return {"token": labelled_rows(scores, target.flatten(), features, index, mask=mask, advice=_ADVICE)}

    def _run(self, inputs: dict[str, Any]) -> tuple[model_head.ModelHead, Tensor | None, Tensor | None]:
        """The head, its input, and the logits, or None where input and weight give them."""
        compiling = torch.compiler.is_compiling()
        if (
            model_head.output_embeddings(self.model) is not self.head.module
            if compiling
            else self._snapshot.is_outdated(self.model)
        ):  # adapters were added, the vocabulary was resized, a hook was put on the head, ...
            self._probe(self.shifted)
        head = self.head
        module, linear = head.module, head.linear
        if self._changing_hooks and self._changing_hooks == foreign_hooks(module, "_forward_hooks"):
            linear = False
        inputs = {**self.options, **inputs}
        hooked = module._forward_hooks or module._forward_pre_hooks or self.model._forward_hooks
        if compiling and linear and self.decodes and not hooked:
            # A hook of ours would break the graph, and those of others would not run.
            return head, self.model.get_decoder()(**inputs)[0], None  # type: ignore[operator]
        run, skip = partial(self.model, **inputs), linear and head.skippable
        try:
            output, hidden, _, changed = model_head.capture(module, run, skip=skip)
        except IndexError as error:
            tokens = inputs.get("input_ids")
            if tokens is None or int(tokens.max()) < self.vocabulary:
                raise
            raise ValueError(
                f"expected tokens from 0 to {self.vocabulary - 1}, received {int(tokens.max())}. {_ADVICE}"
            ) from error
        if linear and changed:  # by a user's hook: while it is there, logits are the model's own
            self._changing_hooks = foreign_hooks(module, "_forward_hooks")
            return self._run(inputs)
        if linear and hidden is not None:
            return head, hidden, None
        logits = model_head.logits_of(output)
        placed = hidden is not None and hidden.shape[:2] == logits.shape[:2]
        return head, hidden if placed else None, logits
