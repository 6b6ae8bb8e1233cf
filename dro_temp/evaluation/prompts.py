"""Class names in sentences, encoded: the weights of a classifier without training."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from dro_temp._checks import check_count
from dro_temp._modes import evaluating
from dro_temp.evaluation._encoders import Encode, encoded, modules_behind
from dro_temp.evaluation._features import check_features, unit
from dro_temp.evaluation._progress import shown


def class_embeddings(
    encode_text: Encode,
    tokenizer: Callable[[list[str]], Any],
    classnames: Sequence[str],
    templates: Sequence[str | Callable[[str], str]] = ("{}",),
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> Float[Tensor, "c d"]:
    r"""One unit vector per class, the mean over templates of its prompts' vectors.

    $$w_c \propto \frac{1}{T} \sum_t \frac{x(\mathrm{prompt}_t(c))}{\|x(\mathrm{prompt}_t(c))\|}, \qquad \|w_c\| = 1$$

    Args:
        encode_text: from what the tokenizer returns to vectors [n d]: `host.encode_text`, or any function. The
            module that it belongs to runs in evaluation mode, and is put back; a bare function is your own care.
        tokenizer: from a list of strings to what `encode_text` takes; a mapping is passed as keywords where
            `encode_text` takes keywords only, as that of `HFDualEncoder` does.
        classnames: one name per class.
        templates: strings with {} where the name stands, or functions of the name.
        batch_size: prompts that are encoded at once, save that those of one class stay together.
        progress: show a progress bar.

    Raises:
        ValueError: no class, an empty name, no template, a template without {}, or vectors that are not finite and
            one per prompt.
        TypeError: class names or templates as one string.
        ImportError: `progress` without rich.

    Example:
        >>> letters = lambda texts: torch.tensor([[text.count("a"), text.count("b")] for text in texts]).float()
        >>> class_embeddings(torch.nn.Identity(), letters, ["aa", "bbb"], ["{}", "{}{}"])
        tensor([[1., 0.],
                [0., 1.]])

    Source: Radford et al., arXiv 2103.00020.
    """
    _check_classnames(classnames)
    _check_templates(templates)
    at_once = max(1, check_count("batch_size", batch_size) // len(templates))
    parts = [classnames[i : i + at_once] for i in range(0, len(classnames), at_once)]
    weights = []
    with evaluating(*modules_behind(encode_text)):
        for names in shown(parts, "classes" if progress else None):
            prompts = [_filled(template, name) for name in names for template in templates]
            vectors = encoded(encode_text, tokenizer(prompts))
            check_features(vectors=vectors)
            if len(vectors) != len(prompts):
                raise ValueError(
                    f"expected one vector for each of {len(prompts)} prompts, received {len(vectors)}. "
                    "Let the tokenizer return one row per string."
                )
            weights.append(
                unit(reduce(unit(vectors), "(name template) d -> name d", "mean", name=len(names)))
            )
    return torch.cat(weights)


def _filled(template: str | Callable[[str], str], name: str) -> str:
    return template.replace("{}", name) if isinstance(template, str) else template(name)


def _check_classnames(classnames: Sequence[str]) -> None:
    if isinstance(classnames, str):
        raise TypeError(
            f"expected classnames as a list, received one string, {classnames!r}. Pass [{classnames!r}]."
        )
    if len(classnames) == 0:
        raise ValueError("expected at least one class name, received none. Pass classnames=['cat', 'dog'].")
    for i, name in enumerate(classnames):
        if not name.strip():
            raise ValueError(
                f"expected a name for every class, received {name!r} as number {i}. Name it, or leave the class out."
            )


def _check_templates(templates: Sequence[str | Callable[[str], str]]) -> None:
    if isinstance(templates, str):
        raise TypeError(
            f"expected templates as a list, received one string, {templates!r}. Pass [{templates!r}]."
        )
    if len(templates) == 0:
        raise ValueError(
            "expected at least one template, received none. Pass templates=['a photo of a {}.']."
        )
    for template in templates:
        if isinstance(template, str) and "{}" not in template:
            raise ValueError(
                f"expected {{}} in every template, where the class name goes, received {template!r}. "
                f"Type {template.strip() + ' {}'!r}, say."
            )
