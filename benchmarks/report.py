"""The numbers as a Markdown table, ratios first, and as a log-log picture of cost against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def table(rows: Sequence[Row]) -> str:
    """One table for each dtype and kind of pass: subjects down, shapes across, times softmax with the middle half."""
    parts = []
    for dtype, kind in _unique((r["dtype"], r["kind"]) for r in rows):
        chosen = [r for r in rows if (r["dtype"], r["kind"]) == (dtype, kind)]
        shapes = _unique(tuple(r["shape"]) for r in chosen)
        parts.append(f"### {kind}, {dtype}: times `jax.nn.softmax`, median (middle half)\n")
        header = ["", *(f"({', '.join(map(str, s))})" for s in shapes)]
        body = []
        for subject in _unique(r["subject"] for r in chosen):
            by_shape = {tuple(r["shape"]): r for r in chosen if r["subject"] == subject}
            body.append([subject, *(_ratio(by_shape.get(s)) for s in shapes)])
        base = {tuple(r["shape"]): r for r in chosen if r["subject"] == "jax.nn.softmax"}
        body.append(["*jax.nn.softmax, ms*", *(f"{base[s]['seconds'] * 1e3:.3g}" for s in shapes)])
        parts.append(_markdown([header, *body]))
    parts.append("### Temporary memory as a multiple of the input, and seconds to compile both passes (float32)\n")
    chosen = [r for r in rows if r["kind"] == "forward+backward" and r["temporary_bytes"] is not None]
    chosen = [r for r in chosen if r["dtype"] == chosen[0]["dtype"]]
    shapes = _unique(tuple(r["shape"]) for r in chosen)
    body = []
    for subject in _unique(r["subject"] for r in chosen):
        by_shape = {tuple(r["shape"]): r for r in chosen if r["subject"] == subject}
        body.append([subject, *(_memory(by_shape.get(s)) for s in shapes)])
    parts.append(_markdown([["", *(f"({', '.join(map(str, s))})" for s in shapes)], *body]))
    return "\n".join(parts)


def attention_table(rows: Sequence[Row]) -> str:
    header = ["attention", "length", "block", "times jax.nn", "ms", "temporary MiB"]
    body = [
        [
            r["subject"],
            str(r["length"]),
            str(r["block_size"] or "-"),
            "-" if r["ratio"] is None else f"{r['ratio']:.2f}",
            f"{r['seconds'] * 1e3:.4g}",
            f"{r['temporary_bytes'] / 2**20:.0f}",
        ]
        for r in rows
    ]
    return _markdown([header, *body])


def picture(rows: Sequence[Row], path: Path) -> None:
    """Nanoseconds an element, forward plus backward, against the width of a slice and the number of slices."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [r for r in rows if r["kind"] == "forward+backward" and r["dtype"] == "float32"]
    if not chosen:
        return
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for axis, dimension, label in zip(axes, (1, 0), ("width of a slice", "number of slices"), strict=True):
        for subject in _unique(r["subject"] for r in chosen):
            mine = sorted((r["shape"][dimension], r["seconds"] / _size(r)) for r in chosen if r["subject"] == subject)
            style = {"marker": "o", "lw": 2} if subject.startswith("smoothmax") else {"marker": ".", "ls": ":", "lw": 1}
            axis.loglog([n for n, _ in mine], [s * 1e9 for _, s in mine], label=subject, **style)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("nanoseconds an element, forward plus backward")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _size(row: Row) -> int:
    rows, width = row["shape"]
    return rows * width


def _ratio(row: Row | None) -> str:
    return "" if row is None else f"{row['ratio']:.3g} ({row['ratio_low']:.2g}-{row['ratio_high']:.2g})"


def _memory(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row['temporary_bytes'] / (4 * _size(row)):.1f}x, {row['compile_seconds']:.2f} s"


def _unique(items: Any) -> list[Any]:
    return list(dict.fromkeys(items))


def _markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines) + "\n"
