"""What do frozen features tell about classes? Class names, neighbours and linear probes as classifiers."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dro_temp._checks import check_count, check_integers, check_positive, check_several
from dro_temp._modes import evaluating
from dro_temp.evaluation._batches import moved, with_progress
from dro_temp.evaluation._inputs import (
    ROUNDING,
    check_features,
    check_ks,
    check_labels,
    expected_hits,
    in_blocks,
    unit,
)

#: From a batch of inputs to vectors [n d]: a module, a method of one, or any function.
Encode: TypeAlias = Callable[..., Tensor]
Template: TypeAlias = str | Callable[[str], str]
#: Features [n d] and class numbers [n].
Labelled: TypeAlias = tuple[Tensor, Tensor]
#: Weight [d c] and bias [c] of a linear classifier.
Linear: TypeAlias = tuple[Tensor, Tensor]

STRENGTHS = tuple(10.0**-power for power in range(9))
BANK = 16_384  # items in a tile of similarities


@dataclass(frozen=True)
class ClassAccuracy:
    """How often the right class is found, in percent.

    Args:
        accuracy: for each k, share of items with their class among the k most probable.
        per_class: for k = 1 (or the least k), the same for the items of each class; NaN for a class without items.
        count: number of items of each class.
    """

    accuracy: dict[int, float]
    per_class: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def mean_per_class(self) -> float:
        """Mean over the classes that have items."""
        known = [value for value in self.per_class if not math.isnan(value)]
        return sum(known) / len(known)


def evaluate_zero_shot(
    encode_image: Encode,
    encode_text: Encode,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    classnames: Sequence[str],
    templates: Sequence[Template],
    tokenizer: Callable[[list[str]], Any],
    ks: Sequence[int] = (1, 5),
    batch_size: int = 256,
    progress: bool = False,
) -> ClassAccuracy:
    """Accuracy of images classified by the nearest class name.

    The class weights are `class_embeddings`, the rule is that of `zero_shot_accuracy`.

    Args:
        encode_image: from a batch of images to vectors [n d]: `host.encode_image`, or any function. The module that
            it belongs to runs in evaluation mode, which is then undone.
        encode_text: from the tokenizer's output to vectors of the same width: `host.encode_text`.
        batches: images and class numbers [n], for example a DataLoader. Images are moved to the encoder's device;
            a mapping is passed as keywords where `encode_image` takes keywords only.
        classnames: one name per class, in the order of the class numbers.
        templates: strings with {} in place of the name, or functions of the name.
        tokenizer: from a list of strings to the input of `encode_text`.
        ks: numbers of classes considered, each at most the number of classes.
        batch_size: prompts that are encoded at once.
        progress: show progress bars.

    Raises:
        ValueError: as `class_embeddings` and `zero_shot_accuracy`; no batches.
        TypeError: class names or templates as one string; labels that are not integers.

    Example:
        >>> import dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Identity(), torch.nn.Identity())
        >>> letters = lambda texts: torch.tensor([[text.count("a"), text.count("b")] for text in texts]).float()
        >>> batches = [(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([0, 1]))]
        >>> evaluate_zero_shot(host.encode_image, host.encode_text, batches, classnames=["aa", "bb"], templates=["{}"],
        ...           tokenizer=letters, ks=(1,)).accuracy
        {1: 100.0}

    Source: Radford et al., arXiv 2103.00020.
    """
    check_ks(ks, len(classnames), "classes")
    classes = class_embeddings(
        encode_text, tokenizer, classnames, templates, batch_size=batch_size, progress=progress
    )
    features, labels = [], []
    with evaluating(_module_of(encode_image)):
        for images, label in with_progress(batches, "images" if progress else None):
            features.append(_encoded(encode_image, images))
            check_integers("label", label)
            labels.append(label)
    if not features:
        raise ValueError(
            "expected at least one batch of images and labels, received none. Pass a list or a DataLoader."
        )
    return zero_shot_accuracy(torch.cat(features), classes, torch.cat(labels), ks=ks)


def zero_shot_accuracy(
    images: Float[Tensor, "n d"],
    classes: Float[Tensor, "c d"],
    label: Int[Tensor, "n"],
    *,
    ks: Sequence[int] = (1, 5),
    progress: bool = False,
) -> ClassAccuracy:
    r"""Accuracy of features classified by the class vector of highest cosine similarity.

    Ties, up to rounding ($2^{-20}$), are broken at random, in expectation: of t classes that are as near as the right
    one, itself included, with a nearer ones before them, the right one is among the first k with probability
    $(k - a) / t$, clamped to [0, 1]. So a collapsed model has the accuracy of guessing, and the second of two classes
    with one name, which occur in lists of ImageNet's names, is as good as the first. (In retrieval, ties are misses.)

    Args:
        images: features, any length.
        classes: one vector per class, any length: `class_embeddings`.
        label: class number of each image.
        ks: numbers of classes considered, each at most the number of classes.
        progress: show a progress bar.

    Raises:
        ValueError: features that are not finite matrices of one width, a label outside the classes, or a k above the
            number of classes.
        TypeError: features or labels of a wrong dtype.

    Example:
        >>> report = zero_shot_accuracy(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 1]), ks=(1, 2))
        >>> report.per_class, round(report.accuracy[1], 1)
        ((100.0, 50.0, nan), 66.7)
    """
    check_features(images=images, classes=classes)
    ks = check_ks(ks, len(classes), "classes")
    label = check_labels("label", label, len(images), len(classes)).to(images.device)
    count = label.bincount(minlength=len(classes))
    hits = torch.zeros(len(classes), len(ks), dtype=torch.float64)
    blocks = in_blocks(len(classes), images, label)
    with torch.no_grad():
        for image, right in with_progress(blocks, "images" if progress else None):
            x = unit(image)
            # Not torchmetrics' MulticlassAccuracy: at k = 5 and 1000 classes it took 13 times as long, and among ties
            # it takes the first class, so that a collapsed model is perfect on it.
            expected = expected_hits(x @ unit(classes).to(x).T, right, ks, ROUNDING)
            hits.index_add_(0, right.cpu(), expected.cpu().double())
    total = (100.0 * hits.sum(dim=0) / len(label)).tolist()
    per_class = (100.0 * hits[:, ks.index(min(ks))] / count.cpu()).tolist()  # 0 / 0 is NaN
    return ClassAccuracy(dict(zip(ks, total, strict=True)), tuple(per_class), tuple(count.tolist()))


def class_embeddings(
    encode_text: Encode,
    tokenizer: Callable[[list[str]], Any],
    classnames: Sequence[str],
    templates: Sequence[Template] = ("{}",),
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> Float[Tensor, "c d"]:
    r"""Weights of a zero-shot classifier: per class, the normalised mean over templates of its prompts' unit vectors.

    $$w_c \propto \frac{1}{T} \sum_t \frac{x(\mathrm{prompt}_t(c))}{\|x(\mathrm{prompt}_t(c))\|}, \qquad \|w_c\| = 1$$

    Args:
        encode_text: from the tokenizer's output to vectors [n d]: `host.encode_text`, or any function. The module that
            it belongs to runs in evaluation mode, which is then undone; for a bare function, set the mode yourself.
        tokenizer: from a list of strings to the input of `encode_text`; a mapping is passed as keywords where
            `encode_text` takes keywords only, as that of `HFDualEncoder` does.
        classnames: one name per class, in the order of the class numbers.
        templates: strings with {} in place of the name, or functions of the name.
        batch_size: prompts that are encoded at once; those of one class stay together.
        progress: show a progress bar.

    Returns:
        Unit vectors, one per class.

    Raises:
        ValueError: no class, an empty name, no template, a template without {}, or vectors that are not finite and
            one per prompt.
        TypeError: class names or templates as one string.

    Example:
        >>> letters = lambda texts: torch.tensor([[text.count("a"), text.count("b")] for text in texts]).float()
        >>> class_embeddings(torch.nn.Identity(), letters, ["aa", "bbb"], ["{}", "{}{}"])
        tensor([[1., 0.],
                [0., 1.]])

    Source: Radford et al., arXiv 2103.00020.
    """
    _check_prompts(classnames, templates)
    at_once = max(1, check_count("batch_size", batch_size) // len(templates))
    parts = [classnames[i : i + at_once] for i in range(0, len(classnames), at_once)]
    weights = []
    with evaluating(_module_of(encode_text)):
        for names in with_progress(parts, "classes" if progress else None):
            prompts = [
                t.replace("{}", name) if isinstance(t, str) else t(name) for name in names for t in templates
            ]
            vectors = _encoded(encode_text, tokenizer(prompts))
            check_features(vectors=vectors)
            if len(vectors) != len(prompts):
                raise ValueError(
                    f"expected one vector for each of {len(prompts)} prompts, received {len(vectors)}. "
                    "Let the tokenizer return one row per string."
                )
            weights.append(unit(unit(vectors).reshape(len(names), len(templates), -1).mean(1)))
    return torch.cat(weights)


def _module_of(encode: Encode) -> nn.Module:
    """The module that this function is, or is a method of; an empty one where there is none."""
    owner = encode if isinstance(encode, nn.Module) else getattr(encode, "__self__", None)
    return owner if isinstance(owner, nn.Module) else nn.Module()


def _encoded(encode: Encode, inputs: Any) -> Tensor:
    """Vectors of a batch, which is moved to the encoder's device first."""
    device = next((p.device for p in _module_of(encode).parameters()), None)
    if device is not None and isinstance(
        inputs, Tensor | Mapping
    ):  # a packed sequence, say, stays what it is
        inputs = moved(inputs, device)
    if isinstance(inputs, Mapping):
        kinds = {p.kind for p in inspect.signature(encode).parameters.values()}
        # `HFDualEncoder.encode_text`, for one, takes nothing but keywords.
        if kinds <= {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}:
            return encode(**inputs)
    return encode(inputs)


def _check_prompts(classnames: Sequence[str], templates: Sequence[Template]) -> None:
    for name, values, what, example in (
        ("classnames", classnames, "class name", ["cat", "dog"]),
        ("templates", templates, "template", ["a photo of a {}."]),
    ):
        check_several(name, values, f"Pass [{values!r}].")
        if len(values) == 0:
            raise ValueError(f"expected at least one {what}, received none. Pass {name}={example}.")
    for i, name in enumerate(classnames):
        if not name.strip():
            raise ValueError(
                f"expected a name for every class, received {name!r} as number {i}. Name it, or leave the class out."
            )
    for template in templates:
        if isinstance(template, str) and "{}" not in template:
            raise ValueError(
                f"expected {{}} in every template, received {template!r}. Type {template.strip() + ' {}'!r}, say."
            )


def knn_accuracy(
    train: Float[Tensor, "m d"],
    train_label: Int[Tensor, "m"],
    test: Float[Tensor, "n d"],
    test_label: Int[Tensor, "n"],
    *,
    k: int = 200,
    tau: float = 0.07,
    progress: bool = False,
) -> float:
    r"""Accuracy, in percent, of the weighted vote of the k nearest training items.

    $$\mathrm{votes}_{ic} = \sum_{j \in \mathrm{top}_k(s_{i\cdot}),\ y_j = c} e^{s_{ij} / \tau}, \qquad
    s_{ij} = \cos(x_i, x_j)$$

    A tie between classes counts for each of them in part. Which of several training items that tie for the k-th place
    vote is not specified. Similarities are computed tile by tile, never all at once.

    Args:
        train: features that vote, any length.
        train_label: class number of each.
        test: features to classify.
        test_label: class number of each.
        k: number of neighbours, at most the number of training items.
        tau: temperature of the votes, > 0; a large one weighs all neighbours equally.
        progress: show a progress bar.

    Raises:
        ValueError: features that are not finite matrices of one width, labels that do not fit, a k above the number
            of training items, or a temperature that is not positive.
        TypeError: features or labels of a wrong dtype.

    Example:
        >>> knn_accuracy(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 0]), k=1)
        50.0

    Source: Wu et al., arXiv 1805.01978 (InstDisc): k = 200, tau = 0.07.
    """
    check_features(train=train, test=test)
    train_label = check_labels("train_label", train_label, len(train)).to(train.device)
    test_label = check_labels("test_label", test_label, len(test)).to(train.device)
    (k,) = check_ks((k,), len(train), "training items")
    check_positive("tau", tau)
    classes = 1 + int(torch.stack([train_label.max(), test_label.max()]).max())
    hits = 0.0
    with torch.no_grad():
        bank = unit(train)
        parts = in_blocks(BANK, unit(test).to(bank), test_label)
        for queries, label in with_progress(parts, "neighbours" if progress else None):
            similarity, neighbour = nearest(queries, bank, k)
            # Relative to the nearest: nothing overflows.
            weight = ((similarity - similarity[:, :1]) / tau).exp()
            votes = weight.new_zeros(len(queries), classes).scatter_add_(1, train_label[neighbour], weight)
            hits += float(expected_hits(votes, label, (1,)).sum())
    return 100.0 * hits / len(test)


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest dot products [n k], highest first, and the rows of the bank that they belong to."""
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), BANK):
        tile = queries @ bank[start : start + BANK].T
        number = torch.arange(start, start + tile.shape[1], device=tile.device).expand_as(tile)
        both = torch.cat([best, tile], dim=1)
        best, place = both.topk(min(k, both.shape[1]), dim=1)
        rows = torch.cat([rows, number], dim=1).gather(1, place)
    return best, rows


@dataclass(frozen=True)
class ProbeReport:
    """What a linear layer on frozen features achieves.

    Args:
        accuracy: on the test split, in percent.
        strength: of the L2 penalty, chosen on the validation split.
        validation: accuracy on the validation split, in percent, by strength. Where the best is the first or the
            last one, pass more strengths.
    """

    accuracy: float
    strength: float
    validation: dict[float, float]


def linear_probe(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    strengths: Sequence[float] = STRENGTHS,
    steps: int = 1000,
    progress: bool = False,
) -> ProbeReport:
    r"""Accuracy of multinomial logistic regression on frozen features.

    $$\min_{W, b}\ \frac{1}{n} \sum_i \mathrm{CE}(W^\top x_i + b,\ y_i) + \frac{\lambda}{2} \|W\|^2$$

    For each strength lambda, from the strongest to the weakest, L-BFGS finds the minimum on `train`, starting from the
    previous one. The lambda of highest accuracy on `validation` (of several, the strongest) is then refitted to
    `train` and `validation` together, and tested. It is deterministic. scikit-learn's C is $1 / (n \lambda)$.

    Args:
        train: features [n d] and class numbers [n]. Features are used unscaled: normalise or standardise them where
            their scale means nothing.
        validation: the same, to choose the strength on.
        test: the same, used once.
        strengths: values of lambda to choose from, each > 0.
        steps: maximum number of iterations of L-BFGS for one strength.
        progress: show a progress bar.

    Raises:
        ValueError: features that are not finite matrices of one width, labels that do not fit, or no strength or one
            that is not positive.
        TypeError: features or labels of a wrong dtype.

    Example:
        >>> label = torch.arange(30) % 3
        >>> split = torch.nn.functional.one_hot(label).float(), label
        >>> linear_probe(split, split, split).accuracy
        100.0

    Source: Radford et al., arXiv 2103.00020, appendix A.3.
    """
    named = {"train": train, "validation": validation, "test": test}
    for name, split in named.items():
        if not (isinstance(split, tuple | list) and len(split) == 2):
            raise TypeError(
                f"expected {name} as a pair, received {type(split).__name__}. Pass {name}=(features, label)."
            )
    check_features(**{name: x for name, (x, _) in named.items()})
    check_several("strengths", strengths, "Pass strengths=(1e-3, 1e-5).")
    for strength in strengths:
        check_positive("strength", strength)
    order = sorted({float(strength) for strength in strengths}, reverse=True)
    if not order:
        raise ValueError("expected at least one strength, received none. Pass strengths=(1e-3, 1e-5).")
    check_count("steps", steps)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x, _ in named.values()) else torch.float32
    splits = [
        (x.to(train[0].device, dtype), check_labels(f"{name}_label", y, len(x)).to(train[0].device))
        for name, (x, y) in named.items()
    ]
    (x, label), on_validation, on_test = splits
    classes = 1 + max(int(y.max()) for _, y in splits)
    model = x.new_zeros(x.shape[1], classes), x.new_zeros(classes)
    models, accuracy = {}, {}
    with torch.no_grad():
        for strength in with_progress(order, "linear probe" if progress else None):
            model = models[strength] = fitted(x, label, strength, model, steps)
            accuracy[strength] = _accuracy(model, *on_validation)
        best = max(order, key=accuracy.__getitem__)  # the first of several
        both = torch.cat([x, on_validation[0]]), torch.cat([label, on_validation[1]])
        model = fitted(*both, best, models[best], steps)
    return ProbeReport(_accuracy(model, *on_test), best, accuracy)


def _accuracy(model: Linear, x: Tensor, label: Tensor) -> float:
    weight, bias = model
    blocks = in_blocks(len(bias), x, label)
    hits = (expected_hits(torch.addmm(bias, part, weight), right, (1,)) for part, right in blocks)
    return 100.0 * math.fsum(float(hit.sum()) for hit in hits) / len(x)


def fitted(x: Tensor, label: Tensor, strength: float, start: Linear, steps: int) -> Linear:
    """The minimum of the penalised mean cross-entropy, by L-BFGS with a line search: there is no learning rate.

    The problem is convex: `start` decides only how long it takes.
    """
    weight, bias = (torch.nn.Parameter(p.clone()) for p in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=steps,
        max_eval=2 * steps,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    # In closed form, block by block: under autograd, logits of all items at once would dominate memory.
    def loss_and_gradient() -> Tensor:
        with torch.no_grad():
            loss = x.new_zeros(())
            weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
            for part, right in in_blocks(len(bias), x, label):
                log_p = torch.addmm(bias, part, weight).log_softmax(dim=1)
                loss -= log_p.gather(1, right[:, None]).sum()
                grad = log_p.exp_()
                grad[torch.arange(len(part), device=x.device), right] -= 1
                weight.grad += part.T @ grad
                bias.grad += grad.sum(dim=0)
            weight.grad.div_(len(x)).add_(weight, alpha=strength)
            bias.grad.div_(len(x))
            return loss / len(x) + 0.5 * strength * weight.square().sum()

    optimizer.step(loss_and_gradient)  # type: ignore[arg-type, no-untyped-call]
    return weight.data, bias.data
