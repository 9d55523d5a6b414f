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
    labels = [label for _, target, _ in panels for label in target]
    left, wide, bar = _label_width(labels), len(source) * _CELL, 0.6
    columns = 1 if single else min(len(panels), max(int(_WIDEST / (left + wide)), 1))
    grid = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    named = any(name for name, _, _ in panels)
    bottom, head, gap = _label_width(source), 0.15 + 0.3 * bool(title) + 0.25 * named, 0.3 * named
    cell = _CELL * max(1.0, 0.55 * max((label.count("\n") + 1 for label in labels), default=1))
    heights = [max(1, *(len(target) for _, target, _ in row)) * cell for row in grid]
    # Words stand below every panel of a grid, but only below the last one of a column of single rows.
    below = [0.05 if single and row < len(grid) - 1 else bottom for row in range(len(grid))]
    width = columns * (left + wide + 0.1) + bar + 0.3
    height = head + sum(heights) + sum(below) + gap * (len(grid) - 1)
    largest = max(float(np.max(weights, initial=0.0)) for _, _, weights in panels) or 1.0
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(width, height))

        def axes_at(x, y, w, h):
            return figure.add_axes((x / width, y / height, w / width, h / height))

        top, image = height - head, None
        for row, line in enumerate(grid):
            for column, (name, target, weights) in enumerate(line):
                tall = max(len(target), 1) * cell
                axes = axes_at(left + column * (left + wide + 0.1), top - tall, wide, tall)
                image = _draw(axes, source, target, weights, largest, words=below[row] == bottom)
                axes.set_title(name, fontsize=9, loc="left", pad=3)
            top -= heights[row] + below[row] + gap
        if image is not None:
            tall = min(1.8, height - head - 0.2)
            axes = axes_at(width - bar, height - head - tall, 0.12, tall)
            figure.colorbar(image, cax=axes)
            axes.tick_params(labelsize=7)
        figure.text(0.1 / width, 1 - 0.22 / height, title, fontsize=10, va="center")
        figure.savefig(path, dpi=110)
