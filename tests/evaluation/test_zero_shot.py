"""Zero-shot accuracy against open_clip's own classifier, brute force, and broken input."""

import math

import open_clip
import pytest
import tiny_clips
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy

import dro_temp as dt
from dro_temp.evaluation import class_embeddings, evaluate_zero_shot, zero_shot_accuracy

NAMES = ["cat", "dog", "polar bear", "tram"]
TEMPLATES = ["a photo of a {}.", "{}", "many {}, drawn"]
LENGTH = tiny_clips.LENGTH


def tokens(texts):
    """A word is a number; texts end with the last word of the vocabulary."""
    ids = torch.full((len(texts), LENGTH), tiny_clips.PAD)
    for row, text in enumerate(texts):
        words = [4 + sum(map(ord, word)) % 90 for word in text.split()][: LENGTH - 1]
        ids[row, : len(words) + 1] = torch.tensor([*words, tiny_clips.END])
    return ids


def batches(n=10):
    images = tiny_clips.open_clip_batch(n)["images"]
    label = torch.arange(n) % len(NAMES)
    return [(images[:4], label[:4]), (images[4:], label[4:])]


@pytest.mark.parametrize("kind", ["vit", "siglip"])
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_class_embeddings_are_those_of_open_clip(kind, batch_size):
    model = tiny_clips.open_clip(kind)
    host = dt.hosts.OpenCLIP(model)
    got = class_embeddings(host.encode_text, tokens, NAMES, TEMPLATES, batch_size=batch_size)
    theirs = open_clip.build_zero_shot_classifier(model, tokens, NAMES, TEMPLATES).T
    torch.testing.assert_close(got, theirs)
    functions = [lambda name, t=template: t.format(name) for template in TEMPLATES]
    assert torch.equal(
        class_embeddings(host.encode_text, tokens, NAMES, functions, batch_size=batch_size), got
    )


def test_whole_evaluation_is_that_of_open_clip():
    model = tiny_clips.open_clip("vit")
    host = dt.hosts.OpenCLIP(model)
    report = evaluate_zero_shot(
        host.encode_image, host.encode_text, batches(), classnames=NAMES, templates=TEMPLATES, tokenizer=tokens,
        ks=(1, 2),
    )  # fmt: skip
    weights = open_clip.build_zero_shot_classifier(model, tokens, NAMES, TEMPLATES)
    with torch.no_grad():
        logits = torch.cat([model.encode_image(images, normalize=True) for images, _ in batches()]) @ weights
    label = torch.cat([label for _, label in batches()])
    for k in (1, 2):
        right = (logits.topk(k, dim=1).indices == label[:, None]).any(dim=1)
        assert report.accuracy[k] == pytest.approx(100 * float(right.float().mean()))
    for c in range(len(NAMES)):
        right = logits[label == c].argmax(dim=1) == c
        assert report.per_class[c] == pytest.approx(100 * float(right.float().mean()))
    assert report.count == (3, 3, 2, 2)
    assert report.mean_per_class == pytest.approx(sum(report.per_class) / 4)


def by_hand(encode_image, encode_text):
    """Label of each image by one prompt at a time."""
    weights = []
    for name in NAMES:
        vectors = [encode_text(tokens([t.replace("{}", name)]))[0] for t in TEMPLATES]
        mean = sum(v / v.norm() for v in vectors) / len(vectors)
        weights.append(mean / mean.norm())
    images = torch.cat([images for images, _ in batches()])
    return (encode_image(images) @ torch.stack(weights).T).argmax(dim=1)


def test_a_two_tower_with_dropout_is_evaluated_and_put_back():
    torch.manual_seed(0)
    image = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.LazyLinear(6))
    text = torch.nn.Sequential(torch.nn.Embedding(99, 4), torch.nn.Flatten(), torch.nn.Linear(4 * LENGTH, 6))
    host = dt.hosts.TwoTower(image, text)
    host(*tiny_clips.open_clip_batch(2).values())
    host.train()
    image[2].eval()
    report = evaluate_zero_shot(
        host.encode_image, host.encode_text, batches(), classnames=NAMES, templates=TEMPLATES, tokenizer=tokens,
        ks=(1,),
    )  # fmt: skip
    assert (host.training, image[1].training, image[2].training) == (True, True, False)
    host.eval()
    label = torch.cat([label for _, label in batches()])
    with torch.no_grad():
        right = by_hand(host.encode_image, host.encode_text) == label
    assert report.accuracy[1] == pytest.approx(100 * float(right.float().mean()))
    assert 0 < report.accuracy[1] < 100


def test_a_hugging_face_model_takes_mappings():
    host = dt.hosts.HFDualEncoder(tiny_clips.hf("CLIPModel"))
    read = lambda texts: {"input_ids": tokens(texts), "attention_mask": tokens(texts) != tiny_clips.PAD}  # noqa: E731
    pixels = [({"pixel_values": images}, label) for images, label in batches()]
    report = evaluate_zero_shot(
        host.encode_image, host.encode_text, pixels, classnames=NAMES, templates=TEMPLATES, tokenizer=read,
        ks=(1,), progress=True,
    )  # fmt: skip
    label = torch.cat([label for _, label in batches()])
    with torch.no_grad():
        host.eval()
        guessed = by_hand(
            lambda images: host.encode_image(pixel_values=images),
            lambda ids: host.encode_text(input_ids=ids, attention_mask=ids != tiny_clips.PAD),
        )
    assert report.accuracy[1] == pytest.approx(100 * float((guessed == label).float().mean()))


def chance_by_lot(scores, right, k):
    """Mean over all orders of the tied: each is one rotation of them."""
    above = [c for c in range(len(scores)) if scores[c] > scores[right]]
    tied = [c for c in range(len(scores)) if scores[c] == scores[right]]
    orders = [above + tied[i:] + tied[:i] for i in range(len(tied))]
    return sum(right in order[:k] for order in orders) / len(orders)


@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 8), c=st.integers(2, 6), k=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_accuracy_breaks_ties_by_lot(seed, n, c, k, dtype):
    g = torch.Generator().manual_seed(seed)
    k = min(k, c)
    # Of length 2 and 1, so that cosines are halves, exact in every dtype: many are tied.
    square = torch.tensor([[a, b, x, y] for a in (1, -1) for b in (1, -1) for x in (1, -1) for y in (1, -1)])
    images, classes = (square[torch.randint(16, (size,), generator=g)].to(dtype) for size in (n, c))
    label = torch.randint(c, (n,), generator=g)
    scores = images.double() @ classes.double().T
    chances = [chance_by_lot(row, y, k) for row, y in zip(scores.tolist(), label.tolist(), strict=True)]
    report = zero_shot_accuracy(images, classes, label, ks=(k,))
    assert report.accuracy[k] == pytest.approx(100 * sum(chances) / n)
    for y in range(c):
        own = [chance for chance, other in zip(chances, label.tolist(), strict=True) if other == y]
        expected = 100 * sum(own) / len(own) if own else math.nan
        assert report.per_class[y] == pytest.approx(expected, nan_ok=True)


def test_agrees_with_torchmetrics_where_nothing_is_tied():
    torch.manual_seed(0)
    images, classes, label = torch.randn(300, 8), torch.randn(9, 8), torch.arange(300) % 9
    report = zero_shot_accuracy(images, classes, label, ks=(1, 5))
    assert zero_shot_accuracy(images.double(), classes, label, ks=(1, 5)) == report
    assert zero_shot_accuracy(images, classes.double(), label, ks=(1, 5)) == report
    scores = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(classes).T
    for k in (1, 5):
        theirs = multiclass_accuracy(scores, label, num_classes=9, top_k=k, average="micro")
        assert report.accuracy[k] == pytest.approx(100 * float(theirs))
    theirs = multiclass_accuracy(scores, label, num_classes=9, average=None)
    assert report.per_class == pytest.approx((100 * theirs).tolist())


def test_a_collapsed_model_guesses_and_twins_share():
    same = torch.ones(12, 4)
    assert zero_shot_accuracy(
        same, torch.ones(3, 4), torch.arange(12) % 3, ks=(1, 2)
    ).accuracy == pytest.approx({1: 100 / 3, 2: 200 / 3})
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert zero_shot_accuracy(twins, twins, torch.arange(3), ks=(1,)).per_class == (50.0, 50.0, 100.0)


def test_blocks_do_not_matter(monkeypatch):
    torch.manual_seed(0)
    arguments = torch.randn(50, 8), torch.randn(5, 8), torch.randint(5, (50,))
    whole = zero_shot_accuracy(*arguments)
    monkeypatch.setattr("dro_temp.evaluation._inputs.BLOCK", 15)
    assert zero_shot_accuracy(*arguments, progress=True) == whole


def encode(x):
    return x


def letters(texts):
    return torch.tensor([[text.count("a") + 1.0, text.count("b")] for text in texts])


@pytest.mark.parametrize(
    ("names", "templates", "error", "said"),
    [
        (["a", "b"], [], ValueError, "templates=['a photo of a {}.']"),
        (["a", "b"], ["a photo"], ValueError, "'a photo {}'"),
        (["a", "b"], "{}", TypeError, "['{}']"),
        ("ab", ["{}"], TypeError, "classnames as a sequence"),
        ([], ["{}"], ValueError, "at least one class name"),
        (["a", " "], ["{}"], ValueError, "as number 1"),
    ],
)
def test_refuses_names_and_templates(names, templates, error, said):
    with pytest.raises(error, match=r"expected .* received") as caught:
        class_embeddings(encode, letters, names, templates)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda texts: letters(texts)[:1], "one vector for each of 2 prompts, received 1"),
        (lambda texts: letters(texts) / 0, "finite vectors"),
        (lambda texts: letters(texts)[0], "[2]"),
    ],
)
def test_refuses_vectors_that_do_not_fit(read, said):
    with pytest.raises(ValueError, match=r"expected .* received") as caught:
        class_embeddings(encode, read, ["a", "b"])
    assert said in str(caught.value)


EYE = torch.eye(3)
LABEL = torch.arange(3)
BROKEN = EYE.clone().index_fill_(0, torch.tensor([1]), math.nan)


@pytest.mark.parametrize(
    ("images", "classes", "label", "ks", "error", "said"),
    [
        (EYE[0], EYE, LABEL, (1,), ValueError, "images [n d]"),
        (EYE, EYE[:, :2], LABEL, (1,), ValueError, "images 3, classes 2"),
        (EYE.long(), EYE, LABEL, (1,), TypeError, "images.float()"),
        (BROKEN, EYE, LABEL, (1,), ValueError, "1 of 3 rows, the first is row 1"),
        (EYE, BROKEN, LABEL, (1,), ValueError, "finite classes"),
        (EYE, EYE, LABEL + 1, (1,), ValueError, "from 1 to 3"),
        (EYE, EYE, LABEL - 1, (1,), ValueError, "from -1 to 1"),
        (EYE, EYE, LABEL[:2], (1,), ValueError, "label [3]"),
        (EYE, EYE, LABEL.float(), (1,), TypeError, "label.long()"),
        (EYE, EYE, LABEL, (1, 5), ValueError, "k=5"),
        (EYE, EYE, LABEL, (), ValueError, "at least one k"),
    ],
)
def test_refuses(images, classes, label, ks, error, said):
    with pytest.raises(error, match=r"expected .* received") as caught:
        zero_shot_accuracy(images, classes, label, ks=ks)
    assert said in str(caught.value)


def test_refuses_too_large_a_k_before_anything_is_encoded_and_no_batches():
    def never(texts):
        raise AssertionError

    arguments = {"classnames": ["a", "b"], "templates": ["{}"]}
    with pytest.raises(ValueError, match="k=5"):
        evaluate_zero_shot(encode, encode, [], **arguments, tokenizer=never)
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate_zero_shot(encode, encode, [], **arguments, tokenizer=letters, ks=(1,))
