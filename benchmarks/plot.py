"""A line plot as plain SVG: nothing is needed to draw it, and it can be read on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

from msgspec import Struct

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 80, 120, 48, 56
COLORS = ("#3b78c4", "#d9822b", "#3c9d5b", "#b8456b", "#8368b8")
LABEL_DISTANCE = 16

STYLE = """
text { font: 13px sans-serif; fill: #404040; }
.title { font-size: 15px; font-weight: bold; }
.grid { stroke: #a0a0a0; stroke-opacity: 0.35; }
@media (prefers-color-scheme: dark) { text { fill: #c8c8c8; } }
"""


class Line(Struct, frozen=True):
    """Points: across, the value, the least and the greatest that were measured."""

    name: str
    points: Sequence[tuple[float, float, float, float]]


def plot(lines: Sequence[Line], *, title: str, across: str, up: str) -> str:
    """Values upwards from zero, across by their logarithm, each line named at its end."""
    if not lines:
        raise ValueError("there is nothing to draw")
    xs = sorted({point[0] for line in lines for point in line.points})
    step = tick_step(max(point[3] for line in lines for point in line.points))
    top = step * math.ceil(max(point[3] for line in lines for point in line.points) / step)

    def x(value: float) -> float:
        span = math.log(xs[-1] / xs[0]) or 1.0
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(value / xs[0]) / span

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    drawn = [_text(LEFT, 24, title, "start", "title"), _text(LEFT - 8, TOP - 12, up, "end")]
    for number in range(round(top / step) + 1):
        drawn.append(_rule(LEFT, WIDTH - RIGHT, y(number * step)))
        drawn.append(_text(LEFT - 8, y(number * step) + 4, f"{number * step:,.0f}", "end"))
    drawn += [_text(x(value), HEIGHT - BOTTOM + 20, f"{value:g}", "middle") for value in xs]
    drawn.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, across, "middle"))
    ends = apart([y(line.points[-1][1]) for line in lines], LABEL_DISTANCE)
    for line, color, end in zip(lines, COLORS * len(lines), ends, strict=False):
        path = " ".join(f"{x(point[0]):.1f},{y(point[1]):.1f}" for point in line.points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        for across_, value, least, greatest in line.points:
            drawn.append(
                f'<line x1="{x(across_):.1f}" x2="{x(across_):.1f}" y1="{y(least):.1f}" y2="{y(greatest):.1f}" '
                f'stroke="{color}"/><circle cx="{x(across_):.1f}" cy="{y(value):.1f}" r="3.5" fill="{color}"/>'
            )
        drawn.append(_text(x(line.points[-1][0]) + 10, end + 4, line.name, "start", style=f"fill: {color}"))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *drawn, "</svg>", ""])


def tick_step(greatest: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are at most six steps from zero."""
    if greatest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(greatest / 6))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= greatest)


def apart(places: Sequence[float], distance: float) -> list[float]:
    """The same places in the same order, moved down where two would stand closer than that."""
    moved = list(places)
    order = sorted(range(len(places)), key=places.__getitem__)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + distance)
    return moved


def _rule(left: float, right: float, at: float) -> str:
    return f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "", style: str = "") -> str:
    attributes = "".join(f' {name}="{value}"' for name, value in (("class", kind), ("style", style)) if value)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>{escape(text)}</text>'
