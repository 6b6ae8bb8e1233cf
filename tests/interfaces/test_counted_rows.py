"""Which rows count is asked once, and asked again where the weights have changed."""

import torch

import dro_temp as dt
from dro_temp import _faults


def rows(weight):
    return dt.Rows(torch.randn(3, 4), torch.tensor([0, 1, 2]), weight=weight)


def test_it_is_computed_once_also_for_derived_rows():
    r = rows(torch.tensor([1.0, 0.0, 2.0]))
    assert r.has_weight.tolist() == [True, False, True]
    assert r.has_weight is r.valid is r.detached().valid


def test_weights_changed_in_place_are_seen():
    weight = torch.tensor([1.0, 0.0, 2.0])
    r = rows(weight)
    assert r.has_weight.tolist() == [True, False, True]
    weight[1] = 3.0
    assert r.has_weight.tolist() == r.dense().has_weight.tolist() == [True, True, True]


def test_selected_rows_have_weights_of_their_own():
    r = rows(torch.tensor([1.0, 0.0, 2.0]))
    assert r.valid.tolist() == [True, False, True]
    assert r.select(torch.tensor([1, 2])).valid.tolist() == [False, True]


def test_what_inference_computed_is_not_kept_for_training():
    r = dt.Rows(
        torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2]), weight=torch.tensor([1.0, 0.0, 2.0])
    )
    with torch.inference_mode():
        dt.InfoNCELoss()(r, 0.5)
    dt.InfoNCELoss()(r, 0.5).sum().backward()
    assert r.scores.grad.isfinite().all()


def test_a_graph_that_is_captured_computes_it_itself(monkeypatch):
    r = rows(torch.tensor([1.0, 0.0, 2.0]))
    kept = r.has_weight
    monkeypatch.setattr(_faults, "is_capturing", lambda: True)
    assert r.has_weight is not kept
