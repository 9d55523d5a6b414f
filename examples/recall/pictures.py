"""What a run and a comparison look like."""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def save_attention(path: pathlib.Path, weights: np.ndarray, asked: np.ndarray) -> None:
    """Heatmaps of weights (layers, heads, L, L), exact zeros blank; rows of asked positions are ticked."""
    layers, heads = weights.shape[:2]
    figure, axes = plt.subplots(layers, heads, figsize=(2.6 * heads, 2.8 * layers), squeeze=False)
    for layer, head in np.ndindex(layers, heads):
        axis = axes[layer, head]
        axis.imshow(np.where(weights[layer, head] > 0, weights[layer, head], np.nan), cmap="viridis", vmin=0, vmax=1)
        axis.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks(np.flatnonzero(asked), labels=[])
        axis.tick_params(length=2)
    figure.supxlabel("key", fontsize=9)
    figure.supylabel("query (ticks: asked)", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def save_curves(path: pathlib.Path, runs: list[dict[str, Any]], measure: str) -> None:
    """Accuracy against length, by task and mapping: the mean over the seeds, and from the least to the greatest."""
    names, found = (list(dict.fromkeys(run[key] for run in runs)) for key in ("task", "name"))
    figure, axes = plt.subplots(1, len(names), figsize=(1 + 4.2 * len(names), 3.8), squeeze=False, sharey=True)
    for axis, task in zip(axes[0], names, strict=True):
        for name in found:
            group = [run["tests"] for run in runs if run["task"] == task and run["name"] == name]
            if not group:
                continue
            lengths = [test["length"] for test in group[0]]
            values = np.array([[test[measure] for test in tests] for tests in group])
            [line] = axis.plot(lengths, values.mean(0), marker="o", markersize=3, label=f"{name} ({len(group)})")
            axis.fill_between(lengths, values.min(0), values.max(0), alpha=0.15, color=line.get_color())
        axis.set_xscale("log", base=2)
        axis.set_title(task)
        axis.set_xlabel("tokens")
    axes[0, 0].set_ylabel({"exact": "sequences with all answers right", "answers": "right answers"}[measure])
    axes[0, -1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
