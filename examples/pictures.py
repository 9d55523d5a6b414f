"""Heatmaps of attention: source words along one axis, target words along the other, exact zeros blank."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

# The smallest weight is a visible blue, so that only an exact zero looks like paper.
_COLOURS = LinearSegmentedColormap.from_list("attention", ["#d6e6f4", "#6aaed6", "#08306b"])
_COLOURS.set_bad("white")
_CELL, _WIDEST = 0.3, 16.0  # inches


def _draw(axes, source: Sequence[str], target: Sequence[str], weights: np.ndarray, largest: float, words: bool):
    weights = np.asarray(weights, float)
    image = axes.imshow(np.ma.masked_equal(weights, 0.0), cmap=_COLOURS, vmin=0.0, vmax=largest, aspect="auto")
    axes.set_yticks(range(len(target)), target, fontsize=8)
    axes.set_xticks(range(len(source)), source if words else [""] * len(source), rotation=90, fontsize=8)
    axes.set_xticks(np.arange(len(source) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(target) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e4e4e4", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    return image


def _label_width(labels: Sequence[str]) -> float:
    return 0.3 + 0.075 * max((max(map(len, label.split("\n"))) for label in labels), default=0)


def wrapped(words: Sequence[str], width: int = 28) -> str:
    """A sentence as a label of one row."""
    return textwrap.fill(" ".join(words), width)


def save_heatmaps(
    path: pathlib.Path,
    source: Sequence[str],
    panels: Sequence[tuple[str, Sequence[str], np.ndarray]],
    title: str = "",
):
    """One panel (title, target words, weights (T, S)) for each mapping, all over the same source."""
    single = all(len(target) == 1 for _, target, _ in panels)
    left = _label_width([label for _, target, _ in panels for label in target])
    wide, bar = len(source) * _CELL, 0.6
    columns = 1 if single else min(len(panels), max(int(_WIDEST / (left + wide)), 1))
    rows = -(-len(panels) // columns)
    tallest = [max(len(panel[1]) for panel in panels[row * columns : (row + 1) * columns]) for row in range(rows)]
    lines = max((label.count("\n") + 1 for _, target, _ in panels for label in target), default=1)
    named = any(name for name, _, _ in panels)
    bottom, head, gap = _label_width(source), 0.15 + 0.3 * bool(title) + 0.25 * named, 0.3 * named
    cell = _CELL * max(1.0, 0.55 * lines)
    # Words below every panel where panels stand in a grid; only below the last one in a column of single rows.
    heights = [max(count, 1) * cell for count in tallest]
    below = [bottom if not single or row == rows - 1 else 0.05 for row in range(rows)]
    total_width = columns * (left + wide + 0.1) + bar + 0.3
    total_height = head + sum(heights) + sum(below) + gap * (rows - 1)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(total_width, total_height))
        largest = max((float(np.max(weights, initial=0.0)) for _, _, weights in panels), default=0.0) or 1.0
        top, image = total_height - head, None
        for row in range(rows):
            for column, (name, target, weights) in enumerate(panels[row * columns : (row + 1) * columns]):
                height = max(len(target), 1) * cell
                box = (column * (left + wide + 0.1) + left, top - height, wide, height)
                scale = total_width, total_height, total_width, total_height
                axes = figure.add_axes([value / size for value, size in zip(box, scale, strict=True)])
                image = _draw(axes, source, target, weights, largest, words=below[row] == bottom)
                if name:
                    axes.set_title(name, fontsize=9, loc="left", pad=3)
            top -= heights[row] + below[row] + gap
        bar_height = min(1.8, total_height - head - 0.2)
        colour_axes = figure.add_axes(
            [
                (total_width - bar) / total_width,
                (total_height - head - bar_height) / total_height,
                0.12 / total_width,
                bar_height / total_height,
            ]
        )
        figure.colorbar(image, cax=colour_axes)
        colour_axes.tick_params(labelsize=7)
        if title:
            figure.text(0.1 / total_width, 1 - 0.22 / total_height, title, fontsize=10, va="center")
        figure.savefig(path, dpi=110)
