"""Draws docs/view-light.png and docs/view-dark.png: `python -m tests.browser.screenshots FOLDER`.

`smollm2/` holds 14 small problems and what `rlt score --tokens --placebos` wrote about them with SmolLM2-135M as teacher
and student: for their explanations, and with the numbers in these replaced (`--control numbers`).
"""

import sys
import tempfile
from pathlib import Path

from rlt.results.view.page import scores_data, write_page
from tests.browser.conftest import CHROMIUM, FLAGS

SCORES = Path(__file__).parent / "smollm2"


def main(folder: Path) -> None:
    """Write both pictures."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        page_file = Path(place) / "page.html"
        write_page(page_file, scores_data([SCORES / "human.jsonl", SCORES / "wrong_numbers.jsonl"], 500))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for scheme, row, part, token in (("light", "p4", "Solution", 4), ("dark", "p6", "Explanation", 8)):
            context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
            page = context.new_page()
            page.goto(f"{page_file.as_uri()}#row={row}")
            page.get_by_label(f"{part}'s tokens").first.locator(".tok").nth(token).hover()
            page.screenshot(path=folder / f"view-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
