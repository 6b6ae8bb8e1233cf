"""`recipes.noisy_pairs`: the best case over pairs, some of which are wrong."""

import pytest
import small
import torch

import dro_temp as dt


def _objective(**options) -> dt.Objective:
    return dt.recipes.noisy_pairs(small.two_tower(), small.N, **{"steps": 4, "tau": 0.2, **options}).double()


def test_it_starts_as_sogclr_and_ends_below_it():
    images, texts = small.data()
    ours, plain = _objective(), dt.recipes.sogclr(small.two_tower(), small.N, tau=0.2).double()
    distances = []
    for index in small.batches(6, size=12):
        losses = []
        for objective in (ours, plain):
            output = objective(images[index], texts[index], index=index)
            losses.append(float(output.loss.detach()))
            output.loss.backward()
            objective.zero_grad(), objective.discard()
        distances.append(losses[1] - losses[0])
        ours(images[index], texts[index], index=index).loss.backward()
        ours.commit()
        ours.zero_grad()
    assert distances[0] == pytest.approx(0, abs=1e-12)
    assert all(later > 1e-3 for later in distances[1:])


def test_a_wrong_caption_gets_less_weight():
    images, texts = small.data()
    objective = _objective(rho=0.5, steps=1)
    index = torch.arange(small.N)
    texts = texts.clone()
    texts[[3, 7]] = texts[[7, 3]]
    optimizer = small.optimizer(objective)
    for _ in range(25):
        objective(images, texts, index=index).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {s.sample for s in objective.risks["all"].suspects(2)} == {3, 7}


@pytest.mark.parametrize("options", [{"rho": -0.1}, {"steps": 0}, {"tau": 0.0}])
def test_bad_numbers_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        _objective(**options)
