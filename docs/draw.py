"""Draws the picture of the README: `python docs/draw.py`. Needs the extra `examples`."""

import pathlib

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import smoothmax as sm

SCORES = 0.5 * jnp.array([0.1, 0.5, 1.5, 1.9, 1.6, 0.6, -0.3, 0.2, 1.0, 1.2, 1.1, 0.3, -0.5, 0.7])
FUSED_TOP_K = sm.conjugate(0.25 * (sm.SquaredL2() + 0.5 * sm.TotalVariation()), over=sm.CappedSimplex(4.0))
PANELS = {
    "scores": SCORES,
    "softmax": sm.softmax(SCORES),
    "entmax": sm.entmax(SCORES),
    "sparsemax": sm.sparsemax(SCORES),
    "fusedmax": sm.fusedmax(SCORES, lam=0.1),
    "oscarmax": sm.oscarmax(SCORES, lam=0.06),
    "top 4, fused": FUSED_TOP_K(SCORES),
}
CAPTIONS = {
    "scores": "what goes in",
    "softmax": "everything a little",
    "entmax": "alpha = 1.5",
    "sparsemax": "exact zeros",
    "fusedmax": "equal neighbours",
    "oscarmax": "equal groups",
    "top 4, fused": "four, in few pieces",
}


def main() -> None:
    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 2.4), layout="constrained")
    for ax, (name, values) in zip(axes, PANELS.items(), strict=True):
        values = np.asarray(values)
        position = np.arange(len(values))
        on = values != 0
        ax.bar(position[on], values[on], width=0.85, color="0.6" if name == "scores" else "tab:blue")
        ax.plot(position[~on], np.zeros(np.sum(~on)), ".", color="0.75", markersize=3)
        ax.set_title(f"{name}\n", fontsize=11, fontweight="bold", pad=0)
        ax.text(0.5, 1.02, CAPTIONS[name], transform=ax.transAxes, ha="center", fontsize=9, color="0.35")
        ax.set(xticks=[], yticks=[])
        ax.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(pathlib.Path(__file__).parent / "images" / "mappings.png", dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
