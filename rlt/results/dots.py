"""A figure of solve rates by arm and by ranking, with 95 % intervals and single seeds."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlt.results.rankings import Ranking
from rlt.results.students import Arm, Solved, solve_rate

WIDTH, LEFT, RIGHT, TOP, BOTTOM, ROW = 680, 190, 20, 34, 24, 26
COLOUR, PALE, GRID, GREY = "#174a7c", "#9bb7d4", "#e4e4e4", "#666"


@dataclass(frozen=True, slots=True)
class Row:
    """A label and its students, of all seeds each: the first drawn hollow, the last filled; a single one is filled."""

    label: str
    students: Sequence[Sequence[Solved]]


@dataclass(frozen=True, slots=True)
class Panel:
    """Rows under a title that says what hollow and filled points are."""

    title: str
    rows: Sequence[Row]


def arms_panel(arms: Sequence[Arm]) -> Panel:
    """Each arm's students, sampled (filled) and greedy (hollow)."""
    rows = []
    for arm in arms:
        greedy = [one.greedy for one in arm.seeds if one.greedy is not None]
        rows.append(Row(arm.name, [*([greedy] if greedy else []), [one.sampled for one in arm.seeds]]))
    sampled = " or ".join(dict.fromkeys(arm.decoding for arm in arms))
    title = f"\u25cf {sampled}" + (", \u25cb greedy" if any(len(row.students) > 1 for row in rows) else "")
    return Panel(f"Students by arm, share solved: {title}", rows)


def rankings_panel(rankings: Sequence[Ranking]) -> Panel:
    """The students of each ranking's lowest band (hollow) and of its highest (filled)."""
    rows = [Row(one.name, [one.bands[0], one.bands[-1]]) for one in rankings]
    return Panel("Students by ranking, share solved: \u25cf of the highest band, \u25cb of the lowest", rows)


def write_figure(path: Path, arms: Sequence[Arm], rankings: Sequence[Ranking]) -> Path:
    """Writes the figure as SVG; returns its path."""
    panels = [*([arms_panel(arms)] if arms else []), *([rankings_panel(rankings)] if rankings else [])]
    path.write_text(figure(panels), encoding="utf-8")
    return path


def figure(panels: Sequence[Panel]) -> str:
    """An SVG of the panels, one below the other, with a common scale from 0 to the largest value, rounded up to tenths."""
    marks = [solve_rate(of) for panel in panels for row in panel.rows for of in row.students]
    last = max(1, math.ceil(10 * max(bounds[1] if bounds else mean for mean, bounds in marks) - 1e-9)) / 10
    parts, top = [], 0.0
    for panel in panels:
        parts.append(_panel(panel, top, last))
        top += TOP + ROW * len(panel.rows) + BOTTOM
    counts = {len(of) > 1 for panel in panels for row in panel.rows for of in row.students}
    over = "problems; one seed" if counts == {False} else "seeds; small points: single seeds"
    over += "; over problems where there is one" if len(counts) > 1 else ""
    parts.append(f'<text x="8" y="{top + 8:g}" fill="{GREY}">lines: 95 % intervals over {over}</text>')
    top += ROW
    size = f'width="{WIDTH}" height="{top:g}" viewBox="0 0 {WIDTH} {top:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _panel(panel: Panel, top: float, last: float) -> str:
    parts = [f'<text x="8" y="{top + 18:g}" font-weight="bold">{html.escape(panel.title)}</text>']
    bottom = top + TOP + ROW * len(panel.rows)
    for tenth in range(0, round(10 * last) + 1, 2 if last > 0.5 else 1):
        x = _x(tenth / 10, last)
        parts.append(f'<path d="M{x:.1f} {top + TOP:g}V{bottom:g}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14:g}" text-anchor="middle">{tenth / 10:g}</text>')
    for number, row in enumerate(panel.rows):
        middle = top + TOP + ROW * (number + 0.5)
        parts.append(f'<text x="{LEFT - 12}" y="{middle + 4:g}" text-anchor="end">{html.escape(row.label)}</text>')
        for index, students in enumerate(row.students):
            y = middle + 8 * (index - (len(row.students) - 1) / 2)
            parts.append(_mark(students, y, last, filled=index == len(row.students) - 1))
    return "".join(parts)


def _mark(students: Sequence[Solved], y: float, last: float, filled: bool) -> str:
    mean, bounds = solve_rate(students)
    parts = []
    if bounds is not None:
        low, high = (_x(bound, last) for bound in bounds)
        parts.append(f'<path d="M{low:.1f} {y:g}H{high:.1f}" stroke="{COLOUR}" stroke-width="1.5"/>')
    if len(students) > 1:
        parts += [f'<circle cx="{_x(one.rate, last):.1f}" cy="{y:g}" r="2" fill="{PALE}"/>' for one in students]
    fill = COLOUR if filled else "white"
    parts.append(f'<circle cx="{_x(mean, last):.1f}" cy="{y:g}" r="3.5" fill="{fill}" stroke="{COLOUR}"/>')
    return "".join(parts)


def _x(rate: float, last: float) -> float:
    return LEFT + rate / last * (WIDTH - LEFT - RIGHT)
