"""The page in a real browser: what it shows, what it does, and what no text can make it do."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Browser
from hypothesis import given
from hypothesis import strategies as st

import dro_temp as dt
from dro_temp.plotting import TokenTemperatures, text_page, token_temperatures
from dro_temp.plotting.pages.rendering import ColourScale, harmless
from dro_temp.plotting.token_page.page import shown

NASTY = ["</script><b>", "<!--", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "&lt;", "&amp", "{title}",
         "\n", "\n        ", " ", "\t", "\u2028", "\u202e", "'", '"', "\\", "\x00", "\r", "é", "漢字", "🜚",
         "\ud800", "", " </textarea>"]  # fmt: skip


def example(tokens=None, seed=0):
    tokens = tokens or ["\n", "def", " f", "(", "x", ")", ":", "\n    ", "return", " x", *NASTY, " end", "\n"]
    g = torch.Generator().manual_seed(seed)
    tau = [math.nan, *(0.8 * torch.exp(0.4 * torch.randn(len(tokens) - 1, generator=g))).tolist()]
    lists = [[[], *([(w, 0.5), ("other", 0.25), ("\n", 1e-5)] for w in tokens[1:])] for _ in range(2)]
    if len(tokens) > 2:
        lists[1][2] = [("after", 0.9999), (tokens[2], 0.0)]
    return TokenTemperatures(tokens, tau, *lists)


# --- In a browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def page(browser, tmp_path):
    """Opens a page; in the end the console must have said nothing, and nothing else was loaded."""
    browser.said.clear()
    browser.requested.clear()
    path = tmp_path / "page.html"

    def opened(found=None, **options):
        path.write_text(text_page(*(found or example()), title="<b>title</b> & 'more'"), encoding="utf-8")
        browser.open(path, **options)
        return browser

    yield opened
    assert browser.said == []
    assert set(browser.requested) <= {path.as_uri(), "data:,"}


CARD = "document.getElementById('card').hidden ? null : document.getElementById('card').innerText"


def test_shows_every_token_and_nothing_else(page):
    found = example()
    browser = page(found)
    spans = browser.value("[...document.querySelectorAll('#text > .t')].map(e => e.textContent)")
    assert spans == [harmless(token) for token in found.tokens]
    whole = browser.value("document.getElementById('text').textContent")
    assert whole == "".join(map(harmless, found.tokens))
    assert browser.value("document.title") == "<b>title</b> & 'more'"
    assert browser.value("document.querySelector('h1').textContent") == "<b>title</b> & 'more'"
    assert browser.value("document.scripts.length") == 2
    assert browser.value("document.querySelectorAll('img, #text b, #text svg, h1 b, #card *').length") == 0


def test_colours_follow_the_temperatures(page):
    found = example()
    browser = page(found)
    colours = browser.value(
        "[...document.querySelectorAll('.t')].map(e => getComputedStyle(e).backgroundColor)"
    )
    order = sorted(range(1, len(found.tau)), key=found.tau.__getitem__)
    assert colours[0] == "rgba(0, 0, 0, 0)"  # not predicted
    assert colours[order[0]] != colours[order[-1]]
    assert len(set(colours)) >= 8
    classes = browser.value("[...document.querySelectorAll('.t')].map(e => e.className)")
    places = [int(re.search(r"c(\d+)", classes[i]).group(1)) for i in order]
    assert places == sorted(places)


def test_the_mouse_shows_the_card(page):
    found = example()
    browser = page(found)
    assert browser.value(CARD) is None
    browser.point("#t2")
    card = browser.value(CARD)
    assert card.splitlines()[0] == "·f"
    assert f"τ = {found.tau[2]:#.3g}" in card
    for part in (
        "before: τ = 1",
        "50.0 %",
        "other",
        "25.0 %",
        "< 0.1 %",
        "after",
        "100 %",
        "what the text says",
    ):
        assert part in card
    actual = browser.value("[...document.querySelectorAll('#card li.actual code')].map(e => e.textContent)")
    assert actual == ["·f", "·f"]
    browser.move(1, 1)
    assert browser.value("new Promise(done => setTimeout(done, 400))") is None
    assert browser.value(CARD) is None


def test_the_mouse_may_go_onto_the_card(page):
    browser = page()
    browser.point("#t2")
    browser.point("#card .head")
    browser.value("new Promise(done => setTimeout(done, 400))")
    assert browser.value(CARD).startswith("·f")


def test_a_token_that_was_not_predicted_says_so(page):
    browser = page()
    browser.press("Tab")
    browser.press("Tab")
    assert "not predicted" in browser.value(CARD)


def test_the_keyboard_shows_the_card(page):
    found = example()
    browser = page(found)
    focused = "document.activeElement.id"
    browser.press("Tab")
    assert browser.value(focused) == "theme"
    browser.press("Tab")
    assert browser.value(focused) == "t0"
    for _ in range(2):
        browser.press("ArrowRight")
    assert browser.value(focused) == "t2"
    assert browser.value(CARD).startswith("·f")
    assert browser.value("document.activeElement.getAttribute('aria-describedby')") == "card"
    label = browser.value("document.activeElement.getAttribute('aria-label')")
    assert label == f"·f, temperature {found.tau[2]:#.3g}"
    browser.press("Escape")
    assert browser.value(CARD) is None
    browser.press("Enter")
    assert browser.value(CARD).startswith("·f")
    browser.press("End")
    assert browser.value(focused) == f"t{len(found.tokens) - 1}"
    browser.press("Home")
    browser.press("ArrowLeft")
    assert browser.value(focused) == "t0"
    browser.press("Tab")  # out of the text in one step
    assert browser.value("document.activeElement.tagName") == "A"
    assert browser.value(CARD) is None


def test_a_click_keeps_the_card(page):
    browser = page()
    browser.click("#t2")
    browser.point("#t8")
    browser.move(1, 1)
    browser.value("new Promise(done => setTimeout(done, 400))")
    assert browser.value(CARD).startswith("·f")
    browser.press("Escape")
    browser.point("#t8")
    assert browser.value(CARD).startswith("return")


def test_the_tables_lead_to_the_tokens(page):
    found = example([f" w{i}" for i in range(3000)])
    browser = page(found)
    taus = browser.value("[...document.querySelectorAll('tbody tr td:first-child')].map(e => e.textContent)")
    ranked = sorted(found.tau[1:])
    assert [float(t) for t in taus] == pytest.approx([*ranked[:10], *ranked[::-1][:10]], rel=5e-3)
    browser.value("document.querySelector('td a').scrollIntoView()")
    browser.click("td a")
    lowest = found.tau.index(ranked[0])
    assert browser.value("document.activeElement.id") == f"t{lowest}"
    assert browser.value(CARD).startswith(f"·w{lowest}")


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("dark", [False, True])
def test_fits_and_can_be_read(page, width, dark):
    browser = page(example([f" word{i}" for i in range(400)]), width=width, dark=dark)
    assert browser.value("document.documentElement.scrollWidth") <= width
    for token in ("#t2", "#t9", "#t150"):
        browser.value(f"document.querySelector('{token}').scrollIntoView({{block: 'end'}})")
        browser.point(token)
        left, top, right, bottom = browser.value(
            "(({left, top, right, bottom}) => [left, top, right, bottom])"
            "(document.getElementById('card').getBoundingClientRect())"
        )
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= 800
    assert min(contrasts(browser)) >= 4.5


def contrasts(browser):
    """WCAG contrast of the text on every shade, as painted."""
    return browser.value("""(() => {
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const painted = (...layers) => {
        for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const light = (rgb) => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const paper = getComputedStyle(document.body).backgroundColor;
      return [...document.querySelectorAll(".t, header p, .labels small")].map(e => {
        const style = getComputedStyle(e), ground = light(painted(paper, style.backgroundColor));
        const ink = light(painted(style.color));
        return (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05);
      });
    })()""")


def test_light_and_dark(page):
    browser = page(dark=True)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = browser.value(ground)
    browser.click("#theme")
    light = browser.value(ground)
    assert light == "rgb(255, 255, 255)"
    assert dark != light
    browser.click("#theme")
    assert browser.value(ground) == dark
    assert page(dark=False).value(ground) == light


def test_a_script_in_the_text_could_not_run_even_if_it_were_one(browser, tmp_path):
    path = tmp_path / "page.html"
    text = text_page(*example())
    path.write_text(
        text.replace("</main>", "<script>document.title = 'run'</script></main>"), encoding="utf-8"
    )
    browser.open(path)
    assert browser.value("document.title") == "Temperature of every token"


# --- Without a browser ---------------------------------------------------------------------------------------


class Seen(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self._deep = [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._deep = self._deep or ("id", "text") in attrs

    def handle_endtag(self, tag):
        self._deep = self._deep and tag != "main"

    def handle_data(self, data):
        if self._deep:
            self.text.append(data)


@given(st.lists(st.text(st.characters(exclude_categories=[])), min_size=1, max_size=8))
def test_any_text_is_only_shown(tokens):
    plain = ["x"] * len(tokens)
    page = text_page(*example(tokens), title=tokens[0])
    page.encode("utf-8")
    seen, like = Seen(), Seen()
    seen.feed(page)
    like.feed(text_page(*example(plain), title="x"))
    assert "".join(seen.text) == "".join(map(harmless, tokens))
    unmarked = [tag for tag in seen.tags if tag != "i"]  # marks of newlines and of empty tokens
    assert unmarked == [tag for tag in like.tags if tag != "i"]
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    assert [card["token"] for card in data] == [shown(token) for token in tokens]


@pytest.mark.parametrize(
    ("token", "seen"),
    [
        (" the", "·the"),
        ("a b ", "a b·"),
        ("   ", "···"),
        ("\n  ", "↵··"),
        ("\n\t x", "↵⇥·x"),
        ("", "∅"),
        ("x" * 99, "x" * 39 + "…"),
        ("\x00\u202e", "␀\ufffd"),
    ],
)
def test_whitespace_is_made_visible(token, seen):
    assert shown(token) == seen


def test_escapes_quotes():
    page = text_page(*example(["a"]), title="<a href=\"x\" b='y'>&")
    assert "<h1>&lt;a href=&#34;x&#34; b=&#39;y&#39;&gt;&amp;</h1>" in page


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_colours_rise_with_temperature(taus):
    scale = ColourScale(taus)
    places = [scale.classes.index(scale.class_of(t)) for t in sorted(taus)]
    assert places == sorted(places)
    assert scale.class_of(scale.middle) == scale.classes[len(scale.classes) // 2]


@pytest.mark.parametrize(
    "tau", [[0.7] * 5, [math.nan] * 5, [math.nan, 0.7, 0.7, 0.7, 0.7], [1e-6, 1.0, 1.0, 1e6, 1]]
)
def test_odd_distributions(tau):
    page = text_page(list("abcde"), tau, [[]] * 5, [[]] * 5)
    assert "nan" not in page.lower().split("<script")[0]


def test_loads_nothing():
    page = text_page(*example(["a", "b", "c"]))
    assert not re.search(r"https?://|@import|url\(|\bsrc=", page)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"tokens": []}, ValueError, "at least one token, received 0 tokens, 3 temperatures, 3 and 3 lists"),
        ({"tokens": "abc"}, TypeError, "list of tokens, received one string"),
        ({"tau": [1.0]}, ValueError, "received 3 tokens, 1 temperatures"),
        ({"tau": [1.0, 0.0, 1.0]}, ValueError, "temperatures > 0, or NaN for none, received 0.0"),
        ({"tau": [1.0, math.inf, 1.0]}, ValueError, "received inf"),
        (
            {"candidates_after": [[], [], [("x", 7.0)]]},
            ValueError,
            r"probabilities in \[0, 1\], received 7.0 for 'x'",
        ),
        ({"candidates_before": [[], [], [("x", math.nan)]]}, ValueError, "received nan"),
    ],
)
def test_refuses(change, error, said):
    given = example(["a", "b", "c"])._asdict() | change
    with pytest.raises(error, match=said):
        text_page(**given)


# --- From a model --------------------------------------------------------------------------------------------

TEXT = "import os\n\n\ndef path(name: str) -> str:  # ü, 漢\n    return os.path.join('a', name)\n"


@pytest.fixture(scope="module")
def reader():
    transformers = pytest.importorskip("transformers")
    from dro_temp.datasets import PythonText

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=1024, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    model = transformers.GPT2LMHeadModel(config).train()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    tokenizer = PythonText(size=400_000).tokenizer(
        1024, root=Path(__file__).parents[2] / ".cache" / "dro_temp"
    )
    return dt.hosts.CausalLM(model), tokenizer, dt.TempNet(16, tau_min=0.1, tau_max=2.0)


def slowly(reader, text):
    """Token by token: the temperature from the hidden state, the candidates by sorting."""
    host, tokenizer, tempnet = reader
    numbers = tokenizer(text).input_ids
    with torch.no_grad():
        output = host.model.eval()(torch.tensor([numbers]), output_hidden_states=True)
        host.model.train()
        tempnet.eval()
        for place in range(1, len(numbers)):
            tau = tempnet(output.hidden_states[-1][:, place - 1])[0]
            lists = []
            for t in (1.0, tau):
                p = (output.logits[0, place - 1] / t).softmax(0).tolist()
                best = sorted(range(1024), key=lambda n, p=p: -p[n])[:3]
                lists.append(
                    [(n, float(p[n])) for n in best + [numbers[place]] * (numbers[place] not in best)]
                )
            yield float(tau), *lists
        tempnet.train()


def test_reads_as_a_slow_reader_does(reader):
    host, tokenizer, tempnet = reader
    found = token_temperatures(host, tokenizer, tempnet, TEXT, k=3, window=64)
    numbers = tokenizer(TEXT).input_ids
    assert len(found.tokens) == len(numbers)
    assert math.isnan(found.tau[0])
    assert found.candidates_before[0] == found.candidates_after[0] == []
    for place, (tau, *lists) in enumerate(slowly(reader, TEXT), start=1):
        assert found.tau[place] == pytest.approx(tau, rel=1e-5)
        for ours, theirs in zip(
            (found.candidates_before[place], found.candidates_after[place]), lists, strict=True
        ):
            assert [p for _, p in ours] == pytest.approx([p for _, p in theirs], rel=1e-4)
            own = theirs[-1][0] == numbers[place]
            assert ours[-1][0] == (found.tokens[place] if own else tokenizer.decode([theirs[-1][0]]))
    assert host.model.training
    assert tempnet.training
    assert "ü" in text_page(*found)


def test_spells_the_text(reader):
    """Also where a character is several tokens, of which none is text by itself."""
    text = "# ü漢🜚 end 🜚🜚\n"
    found = token_temperatures(*reader, text, window=64)
    assert "".join(found.tokens) == text
    assert "" in found.tokens


@pytest.mark.parametrize("window", [2, 3, 8, 31])
def test_windows_read_every_token_once(reader, window):
    found = token_temperatures(*reader, TEXT, k=1, window=window)
    whole = token_temperatures(*reader, TEXT, k=1, window=64)
    assert found.tokens == whole.tokens
    assert found.tau[1:window] == pytest.approx(whole.tau[1:window], rel=1e-4)
    assert sum(map(math.isnan, found.tau)) == 1
    for place, token in enumerate(found.tokens[1:], start=1):
        assert token in [word for word, _ in found.candidates_before[place]]


def test_a_text_longer_than_the_model(reader):
    found = token_temperatures(*reader, TEXT * 6, k=1, window=64)
    assert len(found.tau) > 100
    assert not any(map(math.isnan, found.tau[1:]))


def test_words_keep_the_space_that_some_decoders_drop(reader):
    """Llama's tokenizers decode a token alone without the space that it begins with."""
    host, tokenizer, tempnet = reader

    class Dropping:
        def __call__(self, text, **options):
            return tokenizer(text, **options)

        def decode(self, numbers):
            return tokenizer.decode(numbers).removeprefix(" ")

    found = token_temperatures(host, Dropping(), tempnet, "import os as path", window=64)
    assert "".join(found.tokens) == "import os as path"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"text": ""}, ValueError, "at least two tokens"),
        ({"text": "("}, ValueError, r"received '\(', which is 1"),
        ({"k": 0}, ValueError, "k >= 1"),
        ({"window": 1}, ValueError, "window >= 2"),
    ],
)
def test_reading_refuses(reader, options, error, said):
    given = {"text": TEXT} | options
    with pytest.raises(error, match=said):
        token_temperatures(*reader, given.pop("text"), **given)
