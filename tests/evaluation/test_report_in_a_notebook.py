"""What a notebook shows of a report: the table's own cells, well-formed, and names as text."""

from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import dro_temp as dt
from dro_temp.evaluation import amortisation_gap, evaluate_classifier

markdown = pytest.importorskip("markdown")

NAME = 'a <script>alert("1")</script> & b'


class _Named(dt.hosts.Classifier):
    views = (NAME,)

    def rows(self, *args, **batch):
        return {NAME: super().rows(*args, **batch)["class"]}


def _reports():
    torch.manual_seed(0)
    batches = [(torch.randn(20, 4), torch.randint(4, (20,)))]
    host = dt.hosts.Classifier(nn.Identity())
    yield evaluate_classifier(
        host, batches, validation=batches, predictors={NAME: dt.ConstantTemperature(0.5)}
    )
    named = _Named(nn.Linear(4, 4), nn.Linear(4, 3))
    objective = dt.Objective(named, dt.ConstantTemperature(0.5), dt.KLRobustLoss(0.2))
    yield amortisation_gap(objective, [(x, label % 3) for x, label in batches], tau_min=0.1, tau_max=2.0)[
        NAME
    ]
    scheme = dt.evaluation.TemperatureScheme(
        NAME, 2.0, 0.1, 0.5, 0.2, 0.3, 1.0, dict.fromkeys((0.05, 0.5, 0.95), 1.0)
    )
    yield dt.evaluation.LanguageReport(tokens=10, vocabulary=5, rho=0.5, schemes=(scheme,))


@pytest.mark.parametrize("report", [*_reports()], ids=lambda report: type(report).__name__)
def test_a_notebook_shows_the_table(report):
    html = markdown.markdown(report._repr_markdown_(), extensions=["tables"])
    assert "<script>" not in html
    tree = ElementTree.fromstring(f"<div>{html}</div>")  # well-formed
    shown = [[cell.text or "" for cell in row] for row in tree.iter("tr")]
    plain = [line.strip("|").split("|") for line in report.table().splitlines()]
    del plain[1]  # the ruler
    assert shown == [[cell.strip() for cell in line] for line in plain]
    assert NAME in "".join(tree.itertext())
