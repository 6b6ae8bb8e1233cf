"""A Hugging Face causal language model as a host."""

from typing import Any

from torch import Tensor, nn

from dro_temp.hosts._labels import IGNORE, labelled
from dro_temp.hosts.causal_lm.head import catching
from dro_temp.hosts.causal_lm.probe import logits_of, probe_head, probe_shift
from dro_temp.interfaces import HostAdapter, LinearScores, Rows

_ADVICE = (
    "Use the tokenizer that the model was trained with, or model.resize_token_embeddings(len(tokenizer)); "
    "label what is not to count -100."
)


class CausalLM(HostAdapter):
    r"""Any `AutoModelForCausalLM`: one row per token to predict, scored by the model's own logits.

    $s_{ij}$ is the logit of word j at position i, soft-capped or scaled as the model does it; the target is the
    token that the model's own loss would compare it with. Where the head is linear, rows are `LinearScores`: the
    logits are not materialised, and the head's forward is skipped. What the model does is found out by running it
    on a few tokens when the host is made.

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
        self.head = probe_head(model)
        self.shifted = probe_shift(model) if shifted is None else shifted

    def rows(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Rows]:
        """One row per position that predicts a token.

        Args:
            input_ids: [batch length]; or pass `inputs_embeds` with `labels`.
            attention_mask: 0 at padding, whose tokens are not predicted.
            labels: [batch length], -100 where nothing is to be predicted; the tokens themselves if None.
            **inputs: whatever else the model takes.

        Raises:
            ValueError: no tokens, or tokens that the model does not know.
        """
        if labels is None:
            labels = input_ids
        if labels is None or labels.dim() != 2 or labels.shape[1] < 2:
            raise ValueError(
                "expected input_ids (or inputs_embeds and labels) of shape [batch, length >= 2], received "
                f"{None if labels is None else list(labels.shape)}. Tokenise the text, at least two tokens of it."
            )
        if attention_mask is not None:
            labels = labels.masked_fill(attention_mask == 0, IGNORE)
            inputs["attention_mask"] = attention_mask
        if input_ids is not None:
            inputs["input_ids"] = input_ids
        with catching(self.head.module, skip=self.head.linear and self.head.skippable) as caught:
            output = self.model(**inputs)
        hidden = caught.once
        at = slice(None, -1) if self.shifted else slice(None)
        labels = labels[:, 1:] if self.shifted else labels
        features = None if hidden is None else hidden[:, at].flatten(0, 1)
        scores: Tensor | LinearScores
        if self.head.linear:
            assert features is not None
            scores = LinearScores(features, self.head.weight, self.head.bias, self.head.transform)
        else:
            scores = logits_of(output)[:, at].flatten(0, 1)
        return {"token": labelled(scores, labels.flatten(), features, advice=_ADVICE)}

    @property
    def vocabulary(self) -> int:
        """Number of words."""
        return len(self.head.weight)
