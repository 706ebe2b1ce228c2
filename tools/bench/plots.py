"""Bar and line charts as SVG text, for the pages in docs; needs nothing but Python.

Imported as `lightx2v_pack.tools.bench.plots`, after the script has registered the pack.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

# Readable on white and on black; of the palette of Okabe and Ito, told apart by colour-blind people.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#808080"
_WIDTH = 760
_ROW = 24
_LINE = 16


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that were measured, and a curve through them."""

    name: str
    points: Sequence[tuple[float, float]]
    curve: Sequence[tuple[float, float]] = field(default_factory=tuple)


def bars(title: str, rows: Sequence[tuple[str, float, bool]], unit: str) -> str:
    """Return horizontal bars of (label, value, whether to highlight)."""
    left, heading = 290, _heading(title)
    top = 20 + len(heading) * _LINE
    longest = max(value for _, value, _ in rows)
    parts = list(heading)
    for index, (label, value, is_ours) in enumerate(rows):
        y = top + index * _ROW
        length = value / longest * (_WIDTH - left - 70)
        parts.append(_text(left - 8, y + 15, label, anchor="end"))
        parts.append(_rectangle(left, y + 3, length, _ROW - 6, COLOURS[1] if is_ours else COLOURS[0]))
        parts.append(_text(left + length + 5, y + 15, f"{value:.2f} {unit}"))
    return _document(top + len(rows) * _ROW + 8, parts)


def lines(title: str, series: Sequence[Series], x_name: str, y_name: str, height: int = 360) -> str:
    """Return a chart of points and curves, both axes from zero."""
    heading = _heading(title)
    left, right, top, bottom = 60, _WIDTH - 24, 40 + len(heading) * _LINE, height - 44
    every = [point for each in series for point in (*each.points, *each.curve)]
    x_step, y_step = _tick(max(x for x, _ in every)), _tick(max(y for _, y in every))
    x_most = math.ceil(max(x for x, _ in every) / x_step) * x_step
    y_most = math.ceil(max(y for _, y in every) / y_step) * y_step

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / x_most * (right - left), bottom - y / y_most * (bottom - top)

    parts = [*heading, _text((left + right) / 2, height - 8, x_name, anchor="middle"), _text(8, top - 12, y_name)]
    for index in range(round(x_most / x_step) + 1):
        x, _ = place(index * x_step, 0)
        parts += [_line((x, top), (x, bottom)), _text(x, bottom + 15, f"{index * x_step:g}", anchor="middle")]
    for index in range(round(y_most / y_step) + 1):
        _, y = place(0, index * y_step)
        parts += [_line((left, y), (right, y)), _text(left - 5, y + 4, f"{index * y_step:g}", anchor="end")]
    for index, each in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in each.curve))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for point in each.points:
            x, y = place(*point)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
        parts.append(_rectangle(left + 14, top + 10 + index * 18, 10, 10, colour))
        parts.append(_text(left + 30, top + 19 + index * 18, each.name))
    return _document(height, parts)


def _tick(most: float) -> float:
    """Return a round distance that gives four to ten ticks."""
    power = 10 ** math.floor(math.log10(most)) if most > 0 else 1.0
    return next(step for step in (power / 5, power / 2, power, 2 * power) if most / step <= 10)


def _heading(title: str) -> list[str]:
    """Return the title, broken where it is too wide."""
    return [_text(8, 20 + index * _LINE, line, size=12) for index, line in enumerate(textwrap.wrap(title, 118))]


def _document(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" font-family="sans-serif">'
    background = f'<rect width="{_WIDTH}" height="{height:g}" fill="white"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GREY}" stroke-opacity="0.3"/>'
