"""Gradient caching: chunks for the encoders, the whole batch for the loss, and nobody can tell."""

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dro_temp as dt


def _objective(size=None, dropout=0.0):
    objective = small.objective("tempnet")
    host = objective.host
    host.image_encoder = nn.Sequential(host.image_encoder, nn.Dropout(dropout))
    if size is not None:
        objective.host = dt.hosts.InChunks(host, size=size)
        objective.train()
    return objective


@given(size=st.integers(1, 13), n=st.integers(2, 12))
def test_three_steps_equal_plain_ones(size, n):
    plain, chunked = _objective(), _objective(size)
    for objective in (plain, chunked):
        small.train(objective, small.optimizer(objective), small.batches(3, size=n))
    expected = plain.state_dict()
    for name, value in chunked.state_dict().items():
        plain_value = expected[name.replace("host.host.", "host.")]
        small.assert_same_to_rounding(value, plain_value, small.TRAINED_APART, name)
    assert int(chunked.losses["image"].estimator.steps) == 3  # committed once a step


def test_no_activation_of_another_chunk_is_kept():
    lengths, saved = [], []

    class Watched(nn.Module):
        def forward(self, x):
            lengths.append(len(x))
            return x.sin()  # saves its input

    host = dt.hosts.TwoTower(nn.Sequential(nn.Linear(7, 7), Watched(), nn.Linear(7, 4)), nn.Linear(5, 4))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        rows = dt.hosts.InChunks(host, size=3)(torch.randn(8, 7), torch.randn(8, 5))
    assert lengths == [3, 3, 2]
    assert all(7 not in shape[1:] for shape in saved)  # hidden units; arguments of the chunks are no copies
    rows["image"].dense_scores.sum().backward()
    assert sorted(lengths[3:]) == [2, 3, 3]


def test_backward_drops_what_forward_dropped():
    torch.manual_seed(5)
    objective = _objective(size=5, dropout=0.5)
    images, texts = small.data()
    images.requires_grad_()
    index = torch.arange(12)
    torch.manual_seed(7)
    output = objective(images[index], texts[index], index=index)
    output.loss.backward()
    # The same by hand: both chunked forwards with one seed, then ordinary autograd.
    again = _objective(dropout=0.5)
    host = again.host
    torch.manual_seed(7)
    parts = [(host.encode_image(images[i]), host.encode_text(texts[i])) for i in index.split(5)]
    image, text = (torch.cat(x) for x in zip(*parts, strict=True))

    class Ready(dt.hosts.TwoTower):
        def encode_image(self, images):
            return image

        def encode_text(self, texts):
            return text

    again.host = Ready(host.image_encoder, host.text_encoder)
    expected = again(images[index], texts[index], index=index).loss
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0.0)
    again.zero_grad()
    expected.backward()
    for got, wanted in zip(objective.host.parameters(), again.host.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-10, atol=1e-14)


def test_whatever_has_an_entry_per_sample_is_cut():
    seen = []

    class Takes(dt.hosts.TwoTower):
        def rows(self, batch, names, index=None, constant=None):
            seen.append((len(batch["image"]), names, constant.shape, batch["list"][0].shape))
            return super().rows(batch["image"], batch["list"][0], index)

    host = dt.hosts.InChunks(Takes(nn.Linear(5, 4), nn.Linear(5, 4)), size=2)
    batch = {"image": torch.randn(3, 5), "list": [torch.randn(3, 5)]}
    rows = host(batch, ["a", "b", "c"], index=torch.tensor([4, 5, 6]), constant=torch.zeros(7, 2))
    assert seen[:2] == [
        (2, ["a", "b"], (7, 2), (2, 5)),
        (1, ["c"], (7, 2), (1, 5)),
    ]
    assert rows["image"].index.tolist() == [4, 5, 6]


def test_evaluation_runs_in_chunks_without_a_graph():
    objective = _objective(size=4).eval()
    images, texts = small.data()
    with torch.no_grad():
        found = objective(images, texts).loss
        torch.testing.assert_close(found, _objective().eval()(images, texts).loss, rtol=1e-12, atol=0.0)


def test_bad_input():
    host = dt.hosts.TwoTower(nn.Linear(5, 4), nn.Linear(5, 4))
    with pytest.raises(ValueError, match="size"):
        dt.hosts.InChunks(host, size=0)
    with pytest.raises(ValueError, match="Accumulate gradients instead"):
        dt.hosts.InChunks(dt.hosts.Classifier(nn.Linear(5, 4)), size=2)
    with pytest.raises(ValueError, match="at least one tensor"):
        dt.hosts.InChunks(host, size=2)(["a"], ["b"])
