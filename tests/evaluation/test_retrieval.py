"""Retrieval against a brute-force reference, and what ties and broken models must not gain."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalHitRate

from dro_temp.evaluation import _inputs, caption_recall, retrieval_recall


def reference(queries, gallery, query_label, gallery_label, ks):
    """One query at a time, in integers: sort with wrong items before right ones of the same similarity."""
    found = dict.fromkeys(ks, 0)
    for query, label in zip(queries.tolist(), query_label.tolist(), strict=True):
        items = [
            (-sum(a * b for a, b in zip(query, item, strict=True)), other == label)
            for item, other in zip(gallery.tolist(), gallery_label.tolist(), strict=True)
        ]
        for k in ks:
            found[k] += any(right for _, right in sorted(items)[:k])
    return {k: 100 * count / len(queries) for k, count in found.items()}


def integers(seed, n, m, d, labels):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, *shape: torch.randint(high, shape, generator=generator)  # noqa: E731
    gallery_label = draw(labels, m)
    query_label = gallery_label[draw(m, n)]
    return draw(5, n, d) - 2, draw(5, m, d) - 2, query_label, gallery_label


SHAPES = {
    "seed": st.integers(0, 10**6),
    "n": st.integers(1, 12),
    "m": st.integers(1, 12),
    "d": st.integers(1, 4),
    "labels": st.integers(1, 5),
}


@given(**SHAPES, dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_equals_brute_force(seed, n, m, d, labels, dtype):
    queries, gallery, query_label, gallery_label = integers(seed, n, m, d, labels)
    got = retrieval_recall(queries.to(dtype), gallery.to(dtype), query_label, gallery_label, ks=(1, 2, 5))
    assert got == pytest.approx(reference(queries, gallery, query_label, gallery_label, (1, 2, 5)))


@given(**SHAPES)
def test_order_of_the_gallery_does_not_matter(seed, n, m, d, labels):
    queries, gallery, query_label, gallery_label = integers(seed, n, m, d, labels)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    both = [
        retrieval_recall(queries.float(), gallery[o].float(), query_label, gallery_label[o])
        for o in (torch.arange(m), order)
    ]
    assert both[0] == both[1]
    assert both[0][1] <= both[0][5]


def test_blocks_do_not_matter(monkeypatch):
    torch.manual_seed(0)
    queries, gallery = torch.randn(50, 16), torch.randn(70, 16)
    query_label, gallery_label = torch.randint(20, (50,)), torch.arange(70) % 20
    whole = retrieval_recall(queries, gallery, query_label, gallery_label)
    held = []
    inner = torch.Tensor.__matmul__
    monkeypatch.setattr(_inputs, "BLOCK", 3 * 70)
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: held.append(len(a)) or inner(a, b))
    assert retrieval_recall(queries, gallery, query_label, gallery_label) == whole
    assert max(held) == 3


def test_a_perfect_model_finds_all():
    x = torch.nn.functional.normalize(torch.randn(40, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    label = torch.arange(40)
    assert retrieval_recall(x, x, label, label) == {1: 100.0, 5: 100.0}


@pytest.mark.parametrize("m", [2, 33, 257])
def test_a_collapsed_model_finds_nothing(m):
    # Rounding may differ between the columns of one product; that must not decide.
    one = torch.nn.functional.normalize(torch.randn(1, 96, generator=torch.Generator().manual_seed(m)), dim=1)
    x, label = one.expand(m, 96), torch.arange(m)
    assert retrieval_recall(x, x, label, label, ks=(1,)) == {1: 0.0}


def test_right_items_may_be_tied_with_each_other():
    x = torch.ones(6, 3)
    label = torch.zeros(6, dtype=torch.long)
    assert retrieval_recall(x, x, label, label, ks=(1,)) == {1: 100.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_diverged_model_finds_nothing(value, side):
    label = torch.arange(4)
    pair = [torch.eye(4), torch.eye(4)]
    pair[side] = torch.full((4, 4), value)
    assert retrieval_recall(*pair, label, label, ks=(1,)) == {1: 0.0}


def test_no_gradient_is_kept():
    x = torch.eye(4, requires_grad=True)
    label = torch.arange(4)
    assert retrieval_recall(x, x, label, label, ks=(1,)) == {1: 100.0}


LABEL = torch.arange(3)
EYE = torch.eye(3)


@pytest.mark.parametrize(
    ("arguments", "ks", "error", "said"),
    [
        ((EYE, EYE, LABEL + 1, LABEL), (1,), ValueError, "label 3 of query 2"),
        ((EYE, EYE[:, :2], LABEL, LABEL), (1,), ValueError, "[3, 2]"),
        ((EYE, EYE, LABEL[:2], LABEL), (1,), ValueError, "[2]"),
        ((EYE, EYE, LABEL, LABEL[:2]), (1,), ValueError, "[2]"),
        ((EYE[0], EYE, LABEL, LABEL), (1,), ValueError, "[3], [3, 3]"),
        ((EYE[:0], EYE, LABEL[:0], LABEL), (1,), ValueError, "[0, 3]"),
        ((EYE, EYE[:0], LABEL, LABEL[:0]), (1,), ValueError, "label 0 of query 0"),
        ((EYE, EYE, LABEL, LABEL), (), ValueError, "ks=(1, 5)"),
        ((EYE, EYE, LABEL, LABEL), (0,), ValueError, "k=0"),
        ((EYE, EYE, LABEL, LABEL), (1.5,), TypeError, "float"),
    ],
)
def test_refuses(arguments, ks, error, said):
    with pytest.raises(error, match=r"expected .* received") as caught:
        retrieval_recall(*arguments, ks=ks)
    assert said in str(caught.value)


# --- Several captions per image ------------------------------------------------------------------------------


def by_sets(images, texts, image_of, k):
    """Both ways in integers, one query at a time: the k-th best wrong item must be worse than a right one."""

    def share(queries, gallery, right):
        hits = [
            sum(s >= max(row[j] for j in right(i)) for j, s in enumerate(row) if j not in right(i)) < k
            for i in queries
            for row in [[sum(a * b for a, b in zip(gallery[0][i], item, strict=True)) for item in gallery[1]]]
        ]
        return 100 * sum(hits) / len(hits)

    own = lambda i: {j for j, other in enumerate(image_of) if other == i}  # noqa: E731
    return (
        share(sorted(set(image_of)), (images, texts), own),
        share(range(len(texts)), (texts, images), lambda j: {image_of[j]}),
    )


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 7),
    m=st.integers(1, 15),
    d=st.integers(1, 4),
    k=st.integers(1, 7),
)
def test_captions_equal_brute_force(seed, n, m, d, k):
    images, texts, _, _ = integers(seed, n, m, d, 1)
    image_of = torch.randint(n, (m,), generator=torch.Generator().manual_seed(seed))
    k = min(k, n, m)
    report = caption_recall(images.float(), texts.float(), image_of, ks=(k,))
    expected = by_sets(images.tolist(), texts.tolist(), image_of.tolist(), k)
    assert (report.image_to_text[k], report.text_to_image[k]) == pytest.approx(expected)
    assert report.mean == pytest.approx(sum(expected) / 2)


def test_five_captions_per_image_agree_with_torchmetrics_where_nothing_is_tied():
    torch.manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(12, 8), dim=1)
    image_of = torch.arange(60) // 5
    texts = torch.nn.functional.normalize(images[image_of] + 0.9 * torch.randn(60, 8), dim=1)
    report = caption_recall(images, texts, image_of, progress=True)
    right = image_of[None] == torch.arange(12)[:, None]
    for k in (1, 5, 10):
        for got, scores, target in (
            (report.image_to_text, images @ texts.T, right),
            (report.text_to_image, texts @ images.T, right.T),
        ):
            query = torch.arange(len(scores))[:, None].expand_as(scores)
            theirs = RetrievalHitRate(top_k=k)(scores.flatten(), target.flatten(), indexes=query.flatten())
            assert got[k] == pytest.approx(100 * float(theirs))
    assert 0 < report.text_to_image[1] < report.image_to_text[1] < 100


def test_an_image_without_captions_is_no_query_but_is_in_the_way():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    report = caption_recall(images, torch.eye(2), torch.tensor([0, 1]), ks=(1, 2))
    assert report.image_to_text == {1: 100.0, 2: 100.0}
    assert report.text_to_image == {1: 50.0, 2: 100.0}


def test_a_collapsed_model_finds_no_captions():
    report = caption_recall(torch.ones(3, 4), torch.ones(6, 4), torch.arange(6) // 2, ks=(1,))
    assert (report.image_to_text, report.text_to_image) == ({1: 0.0}, {1: 0.0})


@pytest.mark.parametrize(
    ("images", "texts", "image_of", "ks", "error", "said"),
    [
        (EYE[0], EYE, LABEL, (1,), ValueError, "images [n d]"),
        (EYE, EYE[:, :2], LABEL, (1,), ValueError, "images 3, texts 2"),
        (EYE, EYE, LABEL + 1, (1,), ValueError, "image_of from 0 to 2, received numbers from 1 to 3"),
        (EYE, EYE, LABEL - 1, (1,), ValueError, "from -1 to 1"),
        (EYE, EYE, LABEL[:2], (1,), ValueError, "image_of [3]"),
        (EYE, EYE, LABEL.float(), (1,), TypeError, "image_of.long()"),
        (EYE, EYE, LABEL, (1, 5), ValueError, "ks=(1,)"),
        (EYE, EYE / 0, LABEL, (1,), ValueError, "finite texts"),
        (EYE[:0], EYE, LABEL, (1,), ValueError, "[0, 3]"),
    ],
)
def test_captions_refuse(images, texts, image_of, ks, error, said):
    with pytest.raises(error, match=r"expected .* received") as caught:
        caption_recall(images, texts, image_of, ks=ks)
    assert said in str(caught.value)
