"""The page of `rlt view` in a real browser: colours against known numbers, finding, keyboard, hostile texts, axe."""

import re
import threading

import pytest
import urllib3

from rlt.data.rows import JsonlWriter
from rlt.results.view.live import page_server
from rlt.results.view.page import scores_data
from tests.browser.pages import HOSTILE, hostile_rows, plain_rows, run_page, score_row, scores_page, write_scores

SOLUTION, EXPLANATION = '[aria-label="Solution\'s tokens"] .tok', '[aria-label="Explanation\'s tokens"] .tok'
LIGHT = {"pos": (0x6F, 0xB1, 0xE8), "neg": (0xF5, 0xA0, 0x4C), "panel": (255, 255, 255)}
DARK = {"pos": (0x22, 0x66, 0xA3), "neg": (0x96, 0x4D, 0x06), "panel": (0x1C, 0x1C, 0x1D)}


@pytest.fixture(scope="module")
def page_of_sixty(tmp_path_factory):
    return scores_page(tmp_path_factory.mktemp("sixty"), plain_rows(60))


@pytest.fixture(scope="module")
def page_of_hostile_texts(tmp_path_factory):
    return scores_page(tmp_path_factory.mktemp("hostile"), hostile_rows())


def background(locator):
    """Red, green and blue of 0..255 behind an element."""
    text = locator.evaluate("node => getComputedStyle(node).backgroundColor")
    values = [float(value) for value in re.findall(r"[\d.]+", text)][:3]
    return [255 * value for value in values] if text.startswith("color(") else values


def mixed(theme, kind, share):
    return [share * a + (1 - share) * b for a, b in zip(theme[kind], theme["panel"], strict=True)]


def until(page, selector, text):
    """Wait until the element has that text (the page's policy forbids the strings that `wait_for_function` evaluates)."""
    page.locator(selector).filter(has_text=text).wait_for()


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_tokens_have_the_colours_of_their_numbers(show, page_of_sixty, theme):
    page = show(page_of_sixty, dark=theme is DARK)
    # Nine tenths of all gains and divergences (0, 0.5, 1, 1, 2) are at most 2, the end of the scale.
    tokens = page.locator(SOLUTION)
    assert background(tokens.nth(0)) == pytest.approx(mixed(theme, "pos", 1.0 / 2), abs=1)
    assert background(tokens.nth(1)) == pytest.approx(mixed(theme, "neg", 0.5 / 2), abs=1)
    assert background(tokens.nth(2)) == pytest.approx(theme["panel"], abs=1)
    # A divergence is what the explanation costs: warm where it is high.
    assert background(page.locator(EXPLANATION).nth(0)) == pytest.approx(mixed(theme, "neg", 1.0), abs=1)
    assert background(page.locator(EXPLANATION).nth(1)) == pytest.approx(mixed(theme, "pos", 1.0 / 2), abs=1)


def test_minimum_and_maximum_are_outlined(show, page_of_sixty):
    page = show(page_of_sixty)
    assert page.locator(f"{SOLUTION}.extreme").all_inner_texts() == [" is"]
    assert page.locator(f"{EXPLANATION}.extreme").all_inner_texts() == ["add"]


def test_another_placebo_gives_other_colours(show, page_of_sixty):
    page = show(page_of_sixty)
    page.get_by_label("solution: gain over").select_option("shuffled")
    assert background(page.locator(SOLUTION).nth(1)) == pytest.approx(mixed(LIGHT, "neg", 1.0 / 2), abs=1)
    assert background(page.locator(SOLUTION).nth(2)) == pytest.approx(mixed(LIGHT, "pos", 0.5 / 2), abs=1)


def test_hovering_and_focus_show_both_log_probs(show, page_of_sixty):
    page = show(page_of_sixty)
    page.locator(SOLUTION).nth(1).hover()
    tip = page.locator("#tip")
    assert tip.inner_text().split("\n") == [
        " is", "with this explanation", "−2.500", "rank for the student", "17", "with an empty one", "−2",
        "with another question's", "−1.500",
        "gain", "−0.500", "the minimum of the row",
    ]  # fmt: skip
    page.locator(EXPLANATION).nth(0).focus()
    assert "teacher, seeing the solution\n−0.500\nstudent\n−2.500\ndivergence\n+2.000" in tip.inner_text()


def test_the_terms_add_up_to_the_reward(show, page_of_sixty):
    page = show(page_of_sixty)
    shown = [float(text.replace("−", "-")) for text in page.locator(".terms .value").all_inner_texts()]
    # mean -1.25, minimum -2.5, divergence's mean 0.5 and maximum 2
    assert shown == pytest.approx([-1.25, -0.025, -1.5, -0.06, -2.835], abs=6e-4)
    assert sum(shown[:-1]) == pytest.approx(shown[-1], abs=2e-3)


def test_columns_sort_both_ways(show, page_of_sixty):
    page = show(page_of_sixty)
    page.get_by_role("button", name="reward", exact=True).click()
    page.locator("#grid").evaluate("grid => { grid.scrollTop = 0; }")
    until(page, "#r0", "row-59")
    page.locator('[data-sort="reward"]').click()
    until(page, "#r0", "row-0")
    assert page.locator('[role="columnheader"][aria-sort]').get_attribute("aria-sort") == "ascending"


def test_words_and_comparisons_filter(show, page_of_sixty):
    page = show(page_of_sixty)
    page.locator("#search").fill("what is 7 + 1")
    assert page.locator("#count").inner_text() == "6 of 60 rows"  # 7, 17 ... 57
    page.locator("#search").fill("reward>-2.65")
    expected = sum(row["reward"] > -2.65 for row in plain_rows(60))
    assert page.locator("#count").inner_text() == f"{expected} of 60 rows"


def drag(page, selector, start, end):
    box = page.locator(selector).bounding_box()
    x = [box["x"] + 42 + share * (box["width"] - 50) for share in (start[0], end[0])]
    y = [box["y"] + box["height"] - 20 - share * (box["height"] - 28) for share in (start[1], end[1])]
    page.mouse.move(x[0], y[0])
    page.mouse.down()
    page.mouse.move(x[1], y[1], steps=4)
    page.mouse.up()


def test_brushing_the_histogram_selects_rows_and_its_chip_lets_go(show, page_of_sixty):
    page = show(page_of_sixty)
    drag(page, "#histogram", (0.5, 0.5), (1, 0.5))
    assert page.locator("#count").inner_text() == "30 of 60 rows"
    page.get_by_role("button", name="Remove the filter on reward").click()
    assert page.locator("#count").inner_text() == "60 of 60 rows"


def test_brushing_the_scatter_selects_by_both_parts(show, tmp_path):
    rows = [dict(row, lift_over_empty=float(i % 2)) for i, row in enumerate(plain_rows(40))]
    page = show(scores_page(tmp_path, rows))
    drag(page, "#scatter", (0.5, 0.5), (1, 1))
    assert page.locator("#count").inner_text() == "10 of 40 rows"


def test_a_link_opens_its_row_and_arrows_move_it(show, page_of_sixty):
    page = show(page_of_sixty, "#row=row-41")
    assert page.locator("#detail h2").inner_text() == "Row row-41"
    page.keyboard.press("ArrowDown")
    assert page.locator("#detail h2").inner_text() == "Row row-42"
    assert page.url.endswith("#row=row-42")
    page.evaluate("location.hash = '#row=row-3'")
    until(page, "#detail h2", "Row row-3")


def test_everything_is_reached_by_keyboard(show, page_of_sixty):
    page = show(page_of_sixty)
    page.keyboard.press("/")
    page.keyboard.type("19")
    assert page.locator("#count").inner_text() == "1 of 60 rows"
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    assert page.locator("#detail h2").inner_text() == "Row row-19"
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.className || document.activeElement.id"))
        if seen[-1].startswith("tok"):
            break
    assert seen[-1].startswith("tok")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.innerText") == " well"
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_nothing_is_wider_than_the_window(show, tmp_path, width):
    pages = [scores_page(tmp_path, hostile_rows(), hostile_rows()), run_page(tmp_path)]
    for path in pages:
        page = show(path, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_texts(show, page_of_hostile_texts, name):
    page = show(page_of_hostile_texts)
    text = HOSTILE[name]
    for _ in list(HOSTILE).index(name) * [0]:
        page.keyboard.press("ArrowDown")
    assert page.evaluate("window.broken") is None
    assert page.locator("script").count() == 2
    assert page.locator("main img").count() == 0
    signs = re.sub(r"[\x00-\x1f\u200b\u200e-\u200f\u2028-\u202e\u2060-\u2069]", lambda m: f"[U+{ord(m[0]):04X}]", text)
    wanted = signs.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    shown = page.locator(f"{EXPLANATION} >> nth=0").evaluate("node => node.textContent")
    assert shown.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") == wanted
    page.locator(f"{SOLUTION} >> nth=0").focus()
    assert len(page.locator("#tip").inner_text()) < 600


def test_copied_words_are_underlined_also_behind_emoji(show, tmp_path):
    rows = [
        score_row(
            "0", ["so it", " is", " 5"], ["🙂🙂 yes", " so it", " is", " 5", " then"], question="?",
            solution="so it is 5", explanation="🙂🙂 yes so it is 5 then",
        )
    ]  # fmt: skip
    page = show(scores_page(tmp_path, rows))
    assert page.locator(f"{EXPLANATION}.copied").all_inner_texts() == [" so it", " is", " 5"]


def test_two_files_stand_side_by_side_with_their_differences(show, tmp_path):
    before, after = plain_rows(5), plain_rows(5, shift=0.5)
    for row in after:
        row["explanation"] = "add WELL"
        row["tokens"]["explanation"] = ["add", " WELL"]
    page = show(scores_page(tmp_path, before, after), "#row=row-2")
    assert page.locator(".side").count() == 2
    assert page.locator(".tok.other").all_inner_texts() == [" well", " WELL"]
    delta = page.locator("#r2 .cell").nth(2).inner_text()
    assert float(delta.replace("−", "-")) == pytest.approx(-0.5 / 3, abs=6e-3)
    page.get_by_label("solution: gain over").select_option("other")
    page.locator(SOLUTION).nth(0).hover()
    assert "gain\n−0.500" in page.locator("#tip").inner_text()


def test_five_thousand_rows_open_in_two_seconds_and_only_those_in_sight_are_drawn(show, tmp_path):
    page = show(scores_page(tmp_path, plain_rows(5000)))
    session = page.context.new_cdp_session(page)
    # The page's own work: on a busy machine the clock would measure its neighbours.
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    assert metrics["TaskDuration"] < 2
    assert page.locator('#grid .body [role="row"]').count() < 60
    page.locator("#grid").evaluate("grid => { grid.scrollTop = grid.scrollHeight; }")
    until(page, "#grid", "row-4999")
    assert page.locator('#grid .body [role="row"]').count() < 60


def test_fifty_rows_of_five_hundred_tokens_are_below_a_megabyte(tmp_path):
    rows = [
        score_row(
            f"row-{i}", [" word"] * 200, [" token"] * 300, question="What is it? " * 20, solution=" word" * 200,
            explanation=" token" * 300,
        )
        for i in range(50)
    ]  # fmt: skip
    assert scores_page(tmp_path, rows).stat().st_size < 1_000_000


def test_the_page_of_a_run_shows_every_view(show, tmp_path):
    page = show(run_page(tmp_path))
    assert page.locator("main h2").first.inner_text() == "Students: share of held-out problems solved"
    for name, text in (
        ("Training", "reward"),
        ("Explanations", "Step 0"),
        ("Time", "1.5 min"),
        ("Recipe", "name: a run"),
    ):
        page.get_by_role("button", name=name, exact=True).click()
        assert text in page.locator("main").inner_text()
    page.get_by_role("button", name="Explanations", exact=True).click()
    page.locator(".steps button").nth(2).click()
    assert page.locator("#detail h2").inner_text().startswith("Step 2")
    page.reload()
    assert page.locator("#detail h2").inner_text().startswith("Step 2")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["one", "two", "overview", "training", "rows", "costs", "recipe"])
def test_contrast_and_labels_pass_axe(show, tmp_path, axe, kind, dark):
    if kind in ("one", "two"):
        page = show(scores_page(tmp_path, *[plain_rows(20)] * (1 + (kind == "two"))), dark=dark)
    else:
        page = show(run_page(tmp_path), f"#view={kind}", dark=dark)
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found["violations"]] == []


def test_a_live_page_shows_rows_as_they_are_written_and_keeps_strangers_out(show, tmp_path):
    path = write_scores(tmp_path / "scores.jsonl", plain_rows(3))
    with page_server(lambda: scores_data([path], 100), [path], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        page = show(address, offline=False)
        assert page.locator("#count").inner_text() == "3 of 3 rows"
        with JsonlWriter(path) as file:
            file.write(plain_rows(5)[3:])
        until(page, "#count", "5 of 5 rows")
        assert urllib3.request("GET", address, headers={"Host": "evil.example"}).status == 403
        assert urllib3.request("GET", address + "data.json").headers["etag"]
        page.close()
        server.shutdown()
