"""Bar charts as SVG text, for the pages in docs; needs nothing but Python."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape

# Readable on white and on black; of the palette of Okabe and Ito, told apart by colour-blind people.
COLOUR, HIGHLIGHT = "#0072b2", "#d55e00"
_WIDTH, _LEFT, _ROW, _LINE = 760, 290, 24, 16


def bars(title: str, rows: Sequence[tuple[str, float, bool]], unit: str) -> str:
    """Return horizontal bars of (label, value, whether to highlight)."""
    heading = textwrap.wrap(title, 118)
    top = 20 + len(heading) * _LINE
    longest = max(value for _, value, _ in rows)
    parts = [_text(8, 20 + index * _LINE, line, size=12) for index, line in enumerate(heading)]
    for index, (label, value, is_ours) in enumerate(rows):
        y = top + index * _ROW
        length = value / longest * (_WIDTH - _LEFT - 70)
        parts.append(_text(_LEFT - 8, y + 15, label, anchor="end"))
        shape = f'x="{_LEFT}" y="{y + 3}" width="{length:.1f}" height="{_ROW - 6}"'
        parts.append(f'<rect {shape} fill="{HIGHLIGHT if is_ours else COLOUR}"/>')
        parts.append(_text(_LEFT + length + 5, y + 15, f"{value:.2f} {unit}"))
    height = top + len(rows) * _ROW + 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
