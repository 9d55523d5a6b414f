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


def flash_table(rows: Sequence[Row]) -> str:
    """One table for each size and kind of inputs: ratios to the first subject, with milliseconds."""
    parts = []
    sizes = ("batch", "length", "heads", "head")
    for *size, inputs in _unique((*(r[s] for s in sizes), r["inputs"]) for r in rows):
        chosen = [r for r in rows if [*(r[s] for s in sizes), r["inputs"]] == [*size, inputs]]
        parts.append(f"### batch {size[0]}, length {size[1]}, {size[2]} heads of {size[3]}, causal, {inputs} inputs\n")
        base = chosen[0]["subject"]
        header = [
            "attention",
            f"forward, times {base}",
            "forward+backward",
            "ms",
            "ms",
            "temporary MiB",
            "empty blocks",
        ]
        body = []
        for subject in _unique(r["subject"] for r in chosen):
            kinds = {r["kind"]: r for r in chosen if r["subject"] == subject}
            passes = [kinds[kind] for kind in ("forward", "forward+backward")]
            bytes_ = passes[0]["temporary_bytes"]
            memory = "-" if bytes_ is None else f"{bytes_ / 2**20:.0f}"
            times = [f"{r['seconds'] * 1e3:.3g}" for r in passes]
            body.append([subject, *map(_ratio, passes), *times, memory, f"{passes[0]['empty_blocks']:.0%}"])
        parts.append(_markdown([header, *body]))
    return "\n".join(parts)


def picture(rows: Sequence[Row], path: Path) -> None:
    """Milliseconds, forward plus backward, as slices grow wider and as they grow in number; dotted: proportional."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [r for r in rows if r["kind"] == "forward+backward"]
    shapes = _unique(tuple(r["shape"]) for r in chosen)
    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for axis, grows, fixed, label in zip(
        axes, (1, 0), (0, 1), ("width, at {} slices", "slices, at width {}"), strict=True
    ):
        # The sweep is the shapes that share the most common size of the other axis.
        sizes = [shape[fixed] for shape in shapes]
        common = max(_unique(sizes), key=sizes.count)
        for subject in _unique(r["subject"] for r in chosen):
            mine = [r for r in chosen if r["subject"] == subject and r["shape"][fixed] == common]
            mine = sorted((r["shape"][grows], r["seconds"] * 1e3) for r in mine)
            style = {"color": "black"} if subject == "jax.nn.softmax" else {"marker": "o"}
            axis.loglog(*zip(*mine, strict=True), label=subject, **style)
        swept = [shape[grows] for shape in shapes if shape[fixed] == common]
        ends = [min(swept), max(swept)]
        for start in (0.01, 1.0):
            axis.loglog(ends, [start * n / ends[0] for n in ends], color="0.6", ls=":")
        axis.set_xlabel(label.format(common))
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("milliseconds, forward plus backward")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=100)
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
