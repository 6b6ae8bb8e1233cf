"""hosts.Timm on one model of every module of timm: logits are the model's own, the loss trains every weight.

The normal suite takes a seeded dozen; `make test-timm` takes all below 30 million weights, `make test-timm-all` the
rest as well, and both print what was found.
"""

import random
from collections import Counter

import pytest
import torch

import dro_temp as dt

timm = pytest.importorskip("timm")
from timm_families import CLASSES, FAMILIES, WITHOUT_CLASSES, Family  # noqa: E402

SMALL = [family for family in FAMILIES if family.millions < 30]
LARGE = [family for family in FAMILIES if family.millions >= 30]
SAMPLE = random.Random(0).sample([family for family in SMALL if family.millions < 12], 12)
# Heads of other tasks, which the main logits do not use.
UNUSED = {"volo": "aux_head", "inception_v3": "AuxLogits"}
# At least so many of the modules that timm 1.0.31 has, of which one has no classifier.
TARGETS = {"small": 83, "all": 97}
FOUND: Counter[str] = Counter()


def attach(family: Family) -> None:
    torch.manual_seed(0)
    model = family.build()
    host = dt.hosts.Timm(model).eval()
    objective = dt.Objective(host, dt.TempNet(host.width, tau_min=0.1, tau_max=4.0), dt.KLRobustLoss(1.0))
    channels = model.pretrained_cfg["input_size"][0]
    images, labels = torch.randn(2, channels, family.side, family.side), torch.tensor([0, CLASSES - 1])
    with torch.no_grad():
        own = model(images)
        rows = host(images, labels)["class"]
    assert rows.features.shape == (2, host.width)
    expected = own[0] if isinstance(own, tuple) else own
    torch.testing.assert_close(rows.dense_scores, expected, rtol=1e-5, atol=1e-6)
    output = objective.train()(images, labels)
    output.loss.backward()
    assert output.loss.isfinite()
    skipped = UNUSED.get(family.module, "no such head")
    without = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith(skipped)]
    assert without == []
    FOUND["linear" if isinstance(rows.scores, dt.LinearScores) else "matrix"] += 1


@pytest.mark.parametrize("family", SAMPLE, ids=lambda family: family.module)
def test_a_dozen(family):
    attach(family)


@pytest.mark.timm
@pytest.mark.parametrize(
    "family", [family for family in SMALL if family not in SAMPLE], ids=lambda family: family.module
)
def test_small(family):
    attach(family)


@pytest.mark.timm
@pytest.mark.slow
@pytest.mark.parametrize("family", LARGE, ids=lambda family: family.module)
def test_large(family):
    attach(family)


@pytest.mark.timm
def test_what_is_covered(capsys):
    """Runs last in a process that ran the others; on several processes it only counts the table."""
    with capsys.disabled():
        print(
            f"\n{len(SMALL)} modules below 30 M weights, {len(FAMILIES)} in all; scores here: {dict(FOUND)}"
        )
    assert len(SMALL) >= TARGETS["small"]
    assert len(FAMILIES) >= TARGETS["all"]


def test_every_module_is_in_the_table():
    """Of this version of timm; a newer one may have more."""
    known = {family.module for family in FAMILIES} | set(WITHOUT_CLASSES)
    missing = set(timm.list_modules()) - known
    if timm.__version__ == "1.0.31":
        assert missing == set()
    assert len(known) >= 98


def test_a_tower_without_classes_is_refused():
    for name in WITHOUT_CLASSES.values():
        with torch.device("meta"):
            model = timm.create_model(name)
        with pytest.raises(TypeError, match="expected a classifier of timm"):
            dt.hosts.Timm(model)
