"""The page of images in a real browser: its order, its cards, and what no caption can make it do."""

import pytest
import torch
from browser import CHROMIUM, Browser

from dro_temp.plotting import image_page

NASTY = ["</script><b>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "&lt;", "‮", "", "\x00"]


def example(n=12):
    g = torch.Generator().manual_seed(0)
    tau = 0.02 + 0.1 * torch.rand(n, generator=g)
    captions = [*NASTY, *(f"caption {i}" for i in range(n - len(NASTY)))]
    return {
        "images": torch.rand(n, 3, 16, 16, generator=g),
        "captions": captions,
        "tau": tau,
        "near": [[(f"other of {i} <b>", 0.75), ("</script>", -0.5)] for i in range(n)],
        "tables": {
            "False <negatives>": (
                ("caption", "similarity"),
                [(3, ("<b>one</b>", "0.93")), (8, ("two", "0.9"))],
            )
        },
        "history": [(e, {"image": 0.01 * e * tau, "text": tau}) for e in range(1, 5)],
        "title": "<b>title</b>",
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The example, opened; in the end the console must have said nothing, and nothing else was loaded."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(image_page(**example()), encoding="utf-8")
    browser = Browser()
    browser.open(path)
    yield browser
    assert browser.said == []
    assert {url for url in browser.requested if not url.startswith("data:")} <= {path.as_uri()}
    browser.close()


CARD = "document.getElementById('card').hidden ? null : document.getElementById('card').innerText"


def test_images_stand_in_the_order_of_their_temperatures(page):
    given = example()
    ids = page.value("[...document.querySelectorAll('#grid > .i')].map(e => e.id)")
    assert ids == [f"i{i}" for i in given["tau"].argsort().tolist()]
    shown = page.value("[...document.images].filter(e => e.naturalWidth === 16).length")
    assert shown == 12 + 2  # the table's as well
    classes = page.value(
        "[...document.querySelectorAll('#grid > .i')].map(e => +e.className.match(/c(\\d+)/)[1])"
    )
    assert classes == sorted(classes)
    assert classes[0] < classes[-1]


def test_the_mouse_and_the_keyboard_show_the_card(page):
    given = example()
    page.point("#i3")
    card = page.value(CARD)
    for part in (
        given["captions"][3],
        f"τ = {float(given['tau'][3]):#.3g}",
        "other of 3 <b>",
        "0.750",
        "-0.500",
    ):
        assert part in card
    page.press("Escape")
    assert page.value(CARD) is None
    page.value("document.querySelector('#grid > .i').focus()")
    page.press("ArrowRight")
    second = given["tau"].argsort()[1]
    assert page.value("document.activeElement.id") == f"i{int(second)}"
    assert f"other of {int(second)} <b>" in page.value(CARD)
    page.press("Escape")


def test_a_row_of_a_table_leads_to_its_image(page):
    link = "td a[href='#i8']"
    page.value(f"document.querySelector({link!r}).scrollIntoView({{block: 'center'}})")
    page.click(link)
    assert page.value("document.activeElement.id") == "i8"
    assert "other of 8" in page.value(CARD)
    page.press("Escape")


def test_no_text_becomes_markup(page):
    assert page.value("document.title") == "<b>title</b>"
    assert page.value("document.querySelectorAll('h1 b, td b, svg svg, #card b script').length") == 0
    assert page.value("document.scripts.length") == 2
    assert page.value("document.querySelector('td bdi').textContent") == "<b>one</b>"


def test_temperatures_over_training(page):
    assert page.value("document.querySelectorAll('.map').length") == 2
    assert page.value("document.querySelectorAll('.map .cell').length") > 20


def test_the_theme_changes(page):
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.value(colour)
    page.click("#theme")
    assert page.value(colour) != before


def test_grey_images_and_one_temperature_for_all():
    text = image_page(torch.zeros(2, 8, 8, dtype=torch.uint8), ["a", "b"], [0.1, 0.1])
    assert "Over training" not in text
    assert text.count('class="i ') == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": []}, "received 12 images, 0 captions"),
        ({"tau": torch.ones(11)}, "11 temperatures"),
        ({"tau": torch.zeros(12)}, "expected temperatures > 0"),
        ({"tau": torch.full((12,), torch.nan)}, "expected finite temperatures"),
        ({"near": [[]]}, "1 lists"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        image_page(**(example() | change))
