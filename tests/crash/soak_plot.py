"""Curves over time as an SVG file: one panel per group of columns, no library."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, GAP = 900, 150, 70, 40  # pixels of a panel, and what is around it
COLOURS = ("#1f6fb2", "#c8442c", "#2f8f4e", "#8a5cb8", "#b08a1e")
POINTS = 1200  # of a curve: more than pixels


def curves(hours: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> str:
    """panels: title -> name of a curve -> values, one for each of `hours` (rising)."""
    height = GAP + len(panels) * (HEIGHT + GAP) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + LEFT + 20}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for i, (name, lines) in enumerate(panels.items()):
        parts += _panel(GAP + i * (HEIGHT + GAP), name, hours, lines)
    parts.append(f'<text x="{LEFT + WIDTH}" y="{height - 12}" text-anchor="end">{hours[-1]:.2f} hours</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(top: int, name: str, hours: Sequence[float], lines: Mapping[str, Sequence[float]]) -> list[str]:
    highest = max((max(values) for values in lines.values()), default=0.0) or 1.0
    span = (hours[-1] - hours[0]) or 1.0
    parts = [
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>',
        f'<text x="{LEFT - 6}" y="{top + 12}" text-anchor="end">{highest:.4g}</text>',
        f'<text x="{LEFT - 6}" y="{top + HEIGHT}" text-anchor="end">0</text>',
    ]
    x = LEFT + 8
    step = max(1, len(hours) // POINTS)
    for i, (label, values) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(
            f"{LEFT + WIDTH * (hours[n] - hours[0]) / span:.1f},{top + HEIGHT * (1 - values[n] / highest):.1f}"
            for n in range(0, len(hours), step)
        )
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.2" points="{points}"/>')
        words = f"{name}: {label}" if label else name
        parts.append(f'<text x="{x}" y="{top - 5}" fill="{colour}">{escape(words)}</text>')
        x += 8 * len(words) + 16
    return parts


def slope(hours: Sequence[float], values: Sequence[float]) -> float:
    """Units per hour, by least squares; 0.0 for fewer than two points."""
    n = len(hours)
    middle, mean = sum(hours) / max(1, n), sum(values) / max(1, n)
    spread = sum((h - middle) ** 2 for h in hours)
    return sum((h - middle) * (v - mean) for h, v in zip(hours, values, strict=True)) / spread if spread else 0.0
