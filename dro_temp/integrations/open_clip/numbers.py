"""Sample numbers that travel through open_clip's loop, which unpacks two items of a batch and moves two.

A text of L tokens, [L], becomes [1, L + 1] with the sample's number at its end. A batch of such texts has three
dimensions, so it cannot be mistaken for one without.
"""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dro_temp.datasets import Indexed, SampleTable
from dro_temp.datasets.indexed import SampleKey
from dro_temp.hosts._modules import add_hook

Model = TypeVar("Model", bound=nn.Module)


class NumberedTexts(Dataset[Any]):
    """A map-style data set of (image, tokens) whose texts carry the sample's place in the data set.

    Args:
        dataset: pairs of an image and its tokens [L], for example open_clip's `CsvDataset`.

    Raises:
        TypeError: an iterable-style data set, which `NumberedStream` is for; tokens that are not integers.
        ValueError: items that are not pairs; tokens of several dimensions.

    Example:
        >>> pairs = [("image 0", torch.tensor([5, 6])), ("image 1", torch.tensor([7, 8]))]
        >>> NumberedTexts(pairs)[1]
        ('image 1', tensor([[7, 8, 1]]))
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = Indexed(dataset)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        """The image, and the tokens with the sample's number."""
        *pair, number = self.dataset[index]
        if len(pair) != 2:
            raise ValueError(
                f"expected items (image, tokens), received one of {len(pair)} parts. Wrap the data set so that "
                "it returns tuples of two, as open_clip's loop unpacks them."
            )
        return pair[0], with_number(pair[1], number)


class NumberedStream:
    """For `.map` of a webdataset pipeline: appends the number of each sample's key to its text.

    Args:
        table: maps keys to numbers.
        text: name of the tokens in a sample.
        key: maps a sample to its key. Keys that are unique within a shard only need the shard's name as well: write a
            function of your own.

    Raises:
        KeyError: a sample without tokens or key.

    Example:
        >>> from dro_temp.datasets import SampleTable
        >>> NumberedStream(SampleTable(100))({"__key__": "000001", "text": torch.tensor([5, 6])})
        {'__key__': '000001', 'text': tensor([[ 5,  6, 36]])}
    """

    def __init__(
        self,
        table: SampleTable,
        *,
        text: str = "text",
        key: Callable[[Mapping[str, Any]], SampleKey] = itemgetter("__key__"),
    ) -> None:
        self.table, self.text, self.key = table, text, key

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample, its tokens with the number at their end."""
        try:
            tokens, key = sample[self.text], self.key(sample)
        except KeyError as error:
            raise KeyError(
                f"expected samples with a key and with tokens under {self.text!r}, received one with "
                f"{', '.join(map(repr, sample))}. Put this stage after tokenising and before to_tuple, and pass "
                "text=... or key=... for other names."
            ) from error
        return {**sample, self.text: with_number(tokens, self.table(key))}


def read_numbers(model: Model) -> Model:
    """Make an open_clip model accept numbered texts: its output then has their numbers as `index`, for the loop's loss.

    It adds hooks to the model's forward and changes nothing else: parameters, state-dict keys and methods stay, so its
    checkpoints are open_clip's. Texts without numbers pass as before. Call it before the model is wrapped in
    DistributedDataParallel or compiled.

    Args:
        model: made with `output_dict=True`.

    Returns:
        The same model.

    Raises:
        TypeError: in its forward, if the model returns a tuple.

    Example:
        >>> import open_clip
        >>> vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
        >>> text = {"context_length": 2, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
        >>> model = read_numbers(open_clip.CLIP(24, vision, text, output_dict=True))
        >>> _, texts = NumberedTexts([("image", torch.tensor([5, 6]))])[0]
        >>> model(torch.randn(1, 3, 16, 16), texts[None])["index"]
        tensor([0])
    """
    add_hook(model.register_forward_pre_hook, _take_numbers)
    add_hook(model.register_forward_hook, _hand_numbers_on)
    return model


# The numbers pass from one hook to the other as an attribute of the texts: several threads may run the model at once.
_NUMBERS = "_dro_temp_index"


def _take_numbers(model: nn.Module, args: Any, kwargs: Any = None) -> Any:
    """Take the numbers off the texts before a model's forward."""
    texts = args[1] if len(args) > 1 else (kwargs or {}).get("text")
    if kwargs is None or not isinstance(texts, Tensor) or texts.dim() != 3:
        return None
    index, texts = texts[:, 0, -1], texts[:, 0, :-1]
    setattr(texts, _NUMBERS, index)
    if len(args) > 1:
        return (args[0], texts, *args[2:]), kwargs
    return args, {**kwargs, "text": texts}


def _hand_numbers_on(model: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
    """Add them to what the model returns."""
    if output is None:
        return None
    texts = args[1] if len(args) > 1 else kwargs.get("text")
    index = getattr(texts, _NUMBERS, None)
    if index is None:
        return output
    if not isinstance(output, dict):
        raise TypeError(
            f"expected a model that returns a dict, received {type(output).__name__} from "
            f"{type(model).__name__}. Make it with output_dict=True, or set model.output_dict = True."
        )
    return {**output, "index": index}


def with_number(tokens: Tensor, number: int) -> Tensor:
    """Tokens [L] with the sample's number at their end, int64 [1, L + 1]."""
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool:
        what = str(tokens.dtype) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"expected tokens as integers, received {what}. Tokenise first: tokenizer(text)[0].")
    if tokens.dim() != 1:
        raise ValueError(
            f"expected the tokens of one text, [L], received {list(tokens.shape)}. Write tokenizer(text)[0], and "
            "number samples once, before they are batched."
        )
    return torch.cat([tokens.long(), tokens.new_tensor([number], dtype=torch.int64)])[None]
