import math
import subprocess
import sys

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from dro_temp import plotting
from dro_temp.functional.ranks import spearman

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
    read = [axes.get_xlabel() for axes in figure.axes]
    assert [text.replace("\n", " ") for text in read] == expected
    assert all(len(line) <= 17 for text in read for line in text.split("\n"))
    assert figure.axes[0].get_title() == f"τ = {tau.min():.4f}"
    assert saved(figure, tmp_path)


def test_extremes_leaves_no_text_outside_the_sheet_or_over_its_neighbour():
    caption = "arabic ligature uighur kirghiz yeh with hamza above with alef maksura isolated form"
    figure = plotting.image_extremes(torch.rand(14, 8, 8), [caption] * 14, torch.rand(14), k=7)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [x.get_window_extent(renderer) for axes in figure.axes for x in (axes.title, axes.xaxis.label)]
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
    figure = plotting.training_curves(runs, step="step")
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
        plotting.training_curves(runs)


def test_names_the_extra_where_matplotlib_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'dro-temp\[recipes\]'"):
        plotting.temperature_histogram({"a": torch.rand(3)})


# --- Near-duplicates -----------------------------------------------------------------------------------------


def test_boxes_are_powers_of_two_and_medians_medians(tmp_path):
    count = torch.tensor([0, 0, 1, 2, 3, 4, 7, 8, 40])
    tau = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.8, 0.2, 0.4, 0.9, 0.7])
    figure = plotting.temperature_by_duplicates(tau, count=count)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("number of near-duplicates", "temperature τ")
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["0\nn = 2", "1\nn = 1", "2–3\nn = 2", "4–7\nn = 2", "8–15\nn = 1", "32–63\nn = 1"]
    joined = axes.lines[-1]
    assert list(joined.get_xdata()) == [0, 1, 2, 3, 4, 6]
    assert list(joined.get_ydata()) == pytest.approx([0.2, 0.5, 0.7, 0.3, 0.9, 0.7])
    assert saved(figure, tmp_path)


def test_the_title_says_how_they_go_together():
    concept = torch.arange(200).sqrt().long()  # 0 alone has 1 + 2, ..., 13 has 27
    size = torch.bincount(concept)[concept]

    def title(tau, **given):
        return plotting.temperature_by_duplicates(tau, **given).axes[0].get_title(loc="left")

    assert title(-size.double(), concept=concept).startswith("Spearman r = −1.00 [−1.00, −1.00]")
    assert title(size.double(), concept=concept).endswith("over concepts)")
    assert (
        title(size.double(), count=size - 1) == "Spearman r = 1.00 [1.00, 1.00]   (95 % bootstrap over items)"
    )
    assert (
        title(torch.full((200,), 0.07), concept=concept) == "Spearman r undefined: one side is all one value"
    )
    noise = torch.rand(200, generator=torch.Generator().manual_seed(0))
    assert title(noise, concept=concept) == title(noise, concept=concept)  # chance has no part in it
    assert title(noise, count=size - 1).split("]")[0] != title(noise, concept=concept).split("]")[0]


@given(seed=st.integers(0, 10**6), n=st.integers(2, 30), values=st.integers(1, 6))
def test_rank_correlation_is_scipys(seed, n, values):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randint(values, (2, n), generator=g)
    whole, low, high = spearman(x, y, torch.arange(n), 20)
    if len(x.unique()) == 1 or len(y.unique()) == 1:
        assert math.isnan(whole)
    else:
        assert whole == pytest.approx(scipy.stats.spearmanr(x.numpy(), y.numpy()).statistic, abs=1e-12)
        assert -1 - 1e-12 <= low <= high <= 1 + 1e-12


def test_the_interval_is_that_of_resampling_whole_groups():
    g = torch.Generator().manual_seed(0)
    group = torch.arange(240) // 8
    x = torch.randn(30, generator=g)[group]  # one value a group: 240 items, but 30 witnesses
    y = x + torch.randn(30, generator=g)[group]
    _, low, high = spearman(x, y, group, 400)
    drawn = []
    for _ in range(400):
        members = torch.cat(
            [(group == i).nonzero()[:, 0] for i in torch.randint(30, (30,), generator=g).tolist()]
        )
        drawn.append(scipy.stats.spearmanr(x[members].numpy(), y[members].numpy()).statistic)
    expected = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert [low, high] == pytest.approx(expected, abs=0.06)
    _, item_low, item_high = spearman(x, y, torch.arange(240), 400)
    assert item_high - item_low < 0.6 * (high - low)


@pytest.mark.parametrize(
    ("tau", "given_", "error", "said"),
    [
        (torch.rand(3), {}, ValueError, "neither"),
        (torch.rand(3), {"count": torch.ones(3).long(), "concept": torch.ones(3).long()}, ValueError, "both"),
        (torch.rand(3), {"count": torch.ones(2).long()}, ValueError, "count [3]"),
        (torch.rand(3), {"concept": torch.tensor([0, 1, -1])}, ValueError, "from -1 on"),
        (torch.rand(3), {"count": torch.rand(3)}, TypeError, "count.long()"),
        (torch.tensor([0.1, math.nan]), {"count": torch.ones(2).long()}, ValueError, "finite temperatures"),
    ],
)
def test_duplicates_refuse(tau, given_, error, said):
    with pytest.raises(error, match=r"expected .* received") as caught:
        plotting.temperature_by_duplicates(tau, **given_)
    assert said in str(caught.value)


# --- History -------------------------------------------------------------------------------------------------


def test_history_has_a_column_per_step_that_sums_to_everything(tmp_path):
    g = torch.Generator().manual_seed(0)
    history = [(s, {"image": 0.1 + 0.001 * s * torch.rand(50, generator=g), "text": torch.rand(9, generator=g)})
               for s in (0, 10, 40)]  # fmt: skip
    figure = plotting.temperature_history(history, bins=20, step="iteration")
    image, text = figure.axes[:2]
    assert (image.get_title(loc="left"), text.get_title(loc="left")) == ("image", "text")
    assert (image.get_xlabel(), image.get_ylabel()) == ("iteration", "temperature τ")
    for axes, view in ((image, "image"), (text, "text")):
        (mesh,) = axes.collections
        shares = torch.from_numpy(mesh.get_array().data)
        assert shares.shape == (20, 3)
        torch.testing.assert_close(shares.sum(dim=0), torch.full((3,), 100.0, dtype=torch.float64))
        low, median, high = (torch.tensor(line.get_ydata()) for line in axes.lines)
        torch.testing.assert_close(
            median, torch.stack([tau[view].double().quantile(0.5) for _, tau in history])
        )
        assert bool(((low <= median) & (median <= high)).all())
    sides = image.collections[0].get_coordinates()[0, :, 0]
    assert list(sides) == [-5, 5, 25, 55]
    assert saved(figure, tmp_path)


@pytest.mark.parametrize("tau", [torch.full((4,), 0.07), torch.tensor([0.0])])
def test_history_of_one_step_and_one_temperature(tau, tmp_path):
    assert saved(plotting.temperature_history([(7, {"image": tau})]), tmp_path)


@pytest.mark.parametrize(
    ("history", "error", "said"),
    [
        ([], ValueError, "at least one step"),
        ([(0, {})], ValueError, "at least one view"),
        ([(1, {"a": torch.rand(2)}), (1, {"a": torch.rand(2)})], ValueError, "[1, 1]"),
        ([(0, {"a": torch.rand(2)}), (1, {"b": torch.rand(2)})], ValueError, "['b'] at step 1"),
        ([(0, {"a": torch.tensor([math.nan])})], ValueError, "temperatures of 'a'"),
        ([(0, {"a": torch.empty(0)})], ValueError, "received 0"),
    ],
)
def test_history_refuses(history, error, said):
    with pytest.raises(error, match=r"expected .* received") as caught:
        plotting.temperature_history(history)
    assert said in str(caught.value)


# --- By concept ----------------------------------------------------------------------------------------------


def by_concept(concepts=40, rows=5, noise=0.001):
    g = torch.Generator().manual_seed(0)
    concept = torch.randperm(concepts, generator=g).repeat_interleave(rows)
    return 0.1 + 0.01 * concept + noise * torch.randn(len(concept), generator=g), concept


def test_concepts_at_the_ends_are_named_in_the_order_of_their_medians(tmp_path):
    tau, concept = by_concept()
    names = [f"a name {i} that is rather long and goes on and on" for i in range(40)]
    figure = plotting.temperature_by_concept(tau, concept, names, k=3)
    left, right = figure.axes
    assert left.get_title(loc="left") == "40 concepts of 200 rows"
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert [int(label.split()[2]) for label in labels] == [0, 1, 2, 37, 38, 39]
    assert all(len(label) <= 38 and label.endswith(" …") for label in labels)
    heights = left.get_yticks()
    assert all(
        b - a == pytest.approx(1) for a, b in ((heights[0], heights[2] - 1), (heights[3], heights[5] - 1))
    )
    marks = [line for line in left.lines if line.get_marker() == "|"]
    assert len(marks) == 6
    for mark, i in zip(marks, (0, 1, 2, 37, 38, 39), strict=True):
        assert mark.get_xdata()[0] == pytest.approx(float(tau[concept == i].double().quantile(0.5)))
    bars = [line for line in left.lines if line.get_marker() != "|"][1:]
    assert list(bars[0].get_xdata()) == pytest.approx(
        [float(f(tau[concept == 0])) for f in (torch.min, torch.max)]
    )
    (grey, *named) = left.collections
    assert len(grey.get_offsets()) + sum(len(dots.get_offsets()) for dots in named) == 200
    middle = left.lines[0].get_ydata()
    assert heights[2] < min(middle) < max(middle) < heights[3]
    assert right.get_ylabel() == "share of pairs that differ by less (%)"
    assert saved(figure, tmp_path)


def test_pairs_of_one_concept_and_of_two_are_what_they_say():
    tau, concept = by_concept(rows=3)
    figure = plotting.temperature_by_concept(tau, concept)
    difference = (tau[:, None] - tau[None]).abs()
    same = (concept[:, None] == concept[None]) & ~torch.eye(len(tau), dtype=torch.bool)
    other = concept[:, None] != concept[None]
    for line, mask in zip(figure.axes[1].lines, (same, other), strict=True):
        shown, share = torch.tensor(line.get_xdata()), torch.tensor(line.get_ydata())
        assert bool((shown.diff() >= 0).all())
        assert float(share[-1]) == 1
        for q in (0.1, 0.5, 0.9):
            expected = float(difference[mask].quantile(q))
            assert float(shown.quantile(q)) == pytest.approx(expected, rel=0.08)
    texts = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert [text.split(":")[0] for text in texts] == ["two rows of one concept", "of two concepts"]
    assert float(texts[1].split()[-1]) == pytest.approx(float(difference[other].mean()), rel=0.05)


def test_concepts_of_unequal_size_count_by_their_pairs():
    # One concept of 30 rows that scatter, 30 of two rows that do not: 435 pairs against 30.
    g = torch.Generator().manual_seed(0)
    tau = torch.cat([torch.rand(30, generator=g), torch.arange(30).repeat_interleave(2) + 10.0])
    concept = torch.cat([torch.zeros(30, dtype=torch.long), torch.arange(30).repeat_interleave(2) + 5])
    within = torch.tensor(plotting.temperature_by_concept(tau, concept).axes[1].lines[0].get_xdata())
    assert float((within == 0).double().mean()) == pytest.approx(30 / 465, abs=0.01)


@pytest.mark.parametrize(("concepts", "k", "named"), [(2, 8, 2), (5, 8, 4), (5, 2, 4), (40, 1, 2), (9, 3, 6)])
def test_as_many_concepts_are_named_as_there_are(concepts, k, named, tmp_path):
    figure = plotting.temperature_by_concept(*by_concept(concepts), k=k)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == named
    assert labels[0] == "concept 0"
    assert labels[-1] == f"concept {concepts - 1}"
    assert saved(figure, tmp_path)


def test_small_concepts_are_left_out():
    concept = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3])
    for min_rows, left in ((2, "3 concepts of 8 rows"), (3, "2 concepts of 6 rows")):
        figure = plotting.temperature_by_concept(torch.rand(9), concept, min_rows=min_rows)
        assert figure.axes[0].get_title(loc="left") == left


def test_one_temperature_is_drawn(tmp_path):
    assert saved(plotting.temperature_by_concept(torch.full((9,), 0.07), torch.arange(9) // 3), tmp_path)


@pytest.mark.parametrize(
    ("given_", "error", "said"),
    [
        ({"tau": torch.tensor([0.1, math.nan, 0.1, 0.1])}, ValueError, "finite temperatures"),
        ({"concept": torch.zeros(4)}, TypeError, "concept.long()"),
        ({"concept": torch.tensor([0, 1])}, ValueError, "concept [4]"),
        ({"concept": torch.tensor([0, 0, 1, 2])}, ValueError, "received 1 among 3 concepts of 4 rows"),
        ({"min_rows": 3}, ValueError, "two concepts of 3 rows or more"),
        ({"min_rows": 1}, ValueError, "min_rows=1"),
        ({"k": 0}, ValueError, "k=0"),
        ({"names": ["one"]}, ValueError, "up to 1, received 1 names"),
    ],
)
def test_concepts_refuse(given_, error, said):
    whole = {"tau": torch.rand(4), "concept": torch.tensor([0, 0, 1, 1])} | given_
    with pytest.raises(error, match=r"expected .* received") as caught:
        plotting.temperature_by_concept(**whole)
    assert said in str(caught.value)


# --- Reliability diagrams ------------------------------------------------------------------------------------


def shares(axes):
    """Heights of the drawn pieces, by what the legend calls them: one number per bin with rows."""
    return {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}


def test_reliability_diagram_draws_each_bin(tmp_path):
    from dro_temp.evaluation import reliability

    confidence = torch.tensor([0.3, 0.3, 0.3, 0.3, 0.9, 0.9], dtype=torch.float64)
    correct = torch.tensor([True, True, True, False, True, False])
    other = reliability(torch.rand(50), torch.rand(50) < 0.5, bins=4)
    figure = plotting.reliability_diagram({"a": reliability(confidence, correct, bins=2), "b": other})
    above, _, below, _ = figure.axes
    drawn = shares(above)
    assert drawn["accuracy"] == pytest.approx([30, 50])  # up to the lower of accuracy and confidence
    assert drawn["underconfident"] == pytest.approx([45, 0])  # three of four were right
    assert drawn["overconfident"] == pytest.approx([0, 40])
    assert [bar.get_height() for bar in below.patches] == pytest.approx([400 / 6, 200 / 6])
    error = 100 * (4 * 0.45 + 2 * 0.4) / 6
    assert above.get_title() == f"a\nECE {error:.1f} %"
    assert [axes.get_xlim() for axes in figure.axes] == [(0, 100)] * 4
    assert saved(figure, tmp_path)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (3, 7), (40, 100)])
def test_reliability_diagram_whiskers_are_wilsons(right, count):
    from dro_temp.evaluation import reliability

    correct = torch.arange(count) < right
    figure = plotting.reliability_diagram({"a": reliability(torch.full((count,), 0.5), correct, bins=1)})
    (whiskers,) = figure.axes[0].collections
    interval = scipy.stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    drawn = whiskers.get_segments()[0][:, 1]
    assert drawn == pytest.approx([100 * interval.low, 100 * interval.high], abs=1e-3)


def test_reliability_diagram_legend_stays_on_the_sheet(tmp_path):
    from dro_temp.evaluation import reliability

    for several in (1, 2, 5):
        bins = {f"scheme {i}": reliability(torch.rand(50), torch.rand(50) < 0.5) for i in range(several)}
        figure = plotting.reliability_diagram(bins)
        assert saved(figure, tmp_path)  # lays it out
        box = figure.legends[0].get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        titles = [axes.title.get_window_extent() for axes in figure.axes[:several]]
        assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])


def test_reliability_diagram_refuses_nothing():
    from dro_temp.evaluation import Reliability

    for schemes in ({}, {"a": Reliability((0.0,), (0.0,), (0.0,))}):
        with pytest.raises(ValueError, match=r"expected .* received none"):
            plotting.reliability_diagram(schemes)
