import math
import subprocess
import sys

import pytest
import torch

from dro_temp import plotting

matplotlib = pytest.importorskip("matplotlib")
FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg


@pytest.fixture(autouse=True)
def nothing_global_changes():
    before = dict(matplotlib.rcParams)
    pyplot_was_there = "matplotlib.pyplot" in sys.modules
    yield
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_was_there


def saved(figure, folder):
    path = folder / "figure.png"
    figure.savefig(path)
    return path.read_bytes()


def test_importing_plotting_imports_no_matplotlib():
    code = "import sys, dro_temp.plotting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_histogram_shows_shares_and_a_line_for_one_number(tmp_path):
    tau = {"images": torch.rand(500), "names": 0.5 + 0.1 * torch.rand(20), "global": torch.full((9,), 0.07)}
    figure = plotting.temperature_histogram(tau, bins=10)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("temperature τ", "share of inputs (%)")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label.split(":")[0] for label in labels] == sorted(tau, key=list(tau).index)
    assert labels[2] == "global: 0.0700"
    (line,) = axes.lines
    assert line.get_xdata()[0] == pytest.approx(0.07)
    assert saved(figure, tmp_path)


def test_histogram_of_one_number_alone(tmp_path):
    assert saved(plotting.temperature_histogram({"global": torch.tensor([0.07])}), tmp_path)


def test_histogram_takes_parameters_and_half_precision():
    tau = torch.nn.Parameter(torch.rand(8))
    plotting.temperature_histogram({"a": tau, "b": torch.rand(8, dtype=torch.bfloat16)})


@pytest.mark.parametrize("tau", [{}, {"a": torch.empty(0)}, {"a": torch.tensor([0.1, math.nan])}])
def test_histogram_refuses_nothing_and_nan(tau):
    with pytest.raises(ValueError, match=r"expected .* received"):
        plotting.temperature_histogram(tau)


@pytest.mark.parametrize(("n", "k", "shown"), [(40, 3, 6), (40, 8, 16), (5, 6, 4)])
def test_extremes_are_the_extremes(n, k, shown, tmp_path):
    tau = torch.randperm(n).double() / n
    captions = [f"a rather long caption of the image that has number {i}" for i in range(n)]
    figure = plotting.image_extremes(torch.zeros(n, 8, 8, dtype=torch.uint8), captions, tau, k=k)
    assert len(figure.axes) == shown
    order = tau.argsort().tolist()
    expected = [captions[i] for i in order[: shown // 2] + order[-shown // 2 :]]
    read = [axes.texts[1].get_text() for axes in figure.axes]
    assert [text.replace("\n", " ") for text in read] == expected
    assert all(len(line) <= 17 for text in read for line in text.split("\n"))
    assert figure.axes[0].texts[0].get_text() == f"τ = {tau.min():.4f}"
    assert saved(figure, tmp_path)


def test_extremes_leaves_no_text_outside_the_sheet_or_over_its_neighbour():
    caption = "arabic ligature uighur kirghiz yeh with hamza above with alef maksura isolated form"
    figure = plotting.image_extremes(torch.rand(14, 8, 8), [caption] * 14, torch.rand(14), k=7)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
    boxes += [axes.get_window_extent(renderer) for axes in figure.axes]
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 for b in boxes)
    assert all(figure.bbox.y0 <= b.y0 and b.y1 <= figure.bbox.y1 for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_extremes_takes_colour_images(tmp_path):
    figure = plotting.image_extremes(torch.rand(4, 3, 8, 8), list("abcd"), torch.rand(4), k=1)
    assert saved(figure, tmp_path)


def test_extremes_refuses_other_lengths():
    with pytest.raises(ValueError, match="4 images, 3 captions and 4 temperatures"):
        plotting.image_extremes(torch.rand(4, 8, 8), list("abc"), torch.rand(4))


def test_curves_have_a_panel_per_metric_and_a_line_per_run(tmp_path):
    runs = {"a": {"loss": [3.0, 2.0, 1.0], "R@1 (%)": [math.nan, 10.0, 20.0]}, "b": {"loss": [2.0, 1.0]}}
    figure = plotting.curves(runs, step="step")
    loss, recall = figure.axes
    assert (loss.get_xlabel(), loss.get_ylabel(), recall.get_ylabel()) == ("step", "loss", "R@1 (%)")
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    assert list(recall.lines[0].get_xdata()) == [2, 3]
    assert loss.lines[0].get_color() == recall.lines[0].get_color() != loss.lines[1].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert saved(figure, tmp_path)


@pytest.mark.parametrize("runs", [{}, {"a": {}}])
def test_curves_refuses_nothing(runs):
    with pytest.raises(ValueError, match="expected at least one"):
        plotting.curves(runs)


def test_names_the_extra_where_matplotlib_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'dro-temp\[recipes\]'"):
        plotting.temperature_histogram({"a": torch.rand(3)})
