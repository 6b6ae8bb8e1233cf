"""Rows of labels, padding and soft targets, as a host of one's own makes them."""

import pytest
import torch

import dro_temp as dt
from dro_temp.hosts import labelled_rows

SCORES = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 3.0], [0.0, 0.5, 0.0]])
LABELS = torch.tensor([0, -100, 2, 1])


def test_a_row_counts_if_it_has_a_label_and_is_no_padding():
    rows = labelled_rows(SCORES, LABELS, mask=torch.tensor([1, 1, 0, 1]))
    assert rows.target.tolist() == [0, 0, 0, 1]
    assert rows.weight.tolist() == [1.0, 0.0, 0.0, 1.0]
    values = dt.InfoNCELoss()(rows, 0.5)
    expected = torch.nn.functional.cross_entropy(SCORES / 0.5, LABELS, reduction="none")
    torch.testing.assert_close(values, expected * torch.tensor([1.0, 0.0, 0.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_masks_of_all_kinds_that_tokenizers_return(dtype):
    mask = torch.tensor([0, 1, 1, 1]).to(dtype)
    assert labelled_rows(SCORES, LABELS, mask=mask).weight.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_where_every_row_counts_there_are_no_weights():
    assert labelled_rows(SCORES, LABELS.clamp(min=0), mask=torch.ones(4)).weight is None


def test_labels_at_padding_may_be_anything():
    rows = labelled_rows(SCORES, torch.tensor([0, 99, 2, -7]), mask=torch.tensor([1, 0, 1, 0]))
    assert rows.target.tolist() == [0, 0, 2, 0]
    with pytest.raises(
        ValueError, match="expected labels from 0 to 2, or -100 to ignore a row, received 99 in row 1"
    ):
        labelled_rows(SCORES, torch.tensor([0, 99, 2, -7]), mask=torch.tensor([1, 1, 1, 0]))


def test_soft_labels_at_padding_may_be_anything():
    soft = torch.tensor([[0.2, 0.8, 0.0], [9.0, 9.0, 9.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    rows = labelled_rows(SCORES, soft, mask=torch.tensor([1, 0, 1, 1]))
    assert rows.weight.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert dt.InfoNCELoss()(rows, 0.5)[1] == 0
    with pytest.raises(ValueError, match="soft labels"):
        labelled_rows(SCORES, soft)


def test_smoothing_spreads_a_share_of_the_target():
    rows = labelled_rows(SCORES, LABELS, smoothing=0.3)
    torch.testing.assert_close(rows.target_distribution[0], torch.tensor([0.8, 0.1, 0.1]))
    values = dt.InfoNCELoss()(rows, 1.0)
    expected = torch.nn.functional.cross_entropy(SCORES, LABELS, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(values, expected)


def test_a_mask_of_another_shape_is_an_error():
    with pytest.raises(
        ValueError, match=r"expected mask of shape \[4\], received shape \[2, 2\]. Flatten it"
    ):
        labelled_rows(SCORES, LABELS, mask=torch.ones(2, 2))
