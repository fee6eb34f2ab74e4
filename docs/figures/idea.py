"""Draws the figures of docs/idea.md, from the code: python docs/figures/idea.py (half a minute)."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import modula_rs as mr
import numpy as np
import optax

FOLDER = Path(__file__).parent
WIDTHS = (32, 128, 512, 2048)
COLORS = {"Adam's update": "#b0562f", "the same, of modular norm 1": "#1f7a6d"}


def digits(count=64):
    """Inputs and labels of handwritten digits."""
    data = mr.data.digits()
    x, y = (np.asarray(array[:count]) for array in data.arrays)
    return jnp.asarray(x), jnp.asarray(y)


def first_updates(m, x, y):
    """Weights, and the first update of Adam as it is and at modular norm 1."""
    w = m.initialize(jax.random.key(0))
    gradient = jax.grad(lambda w: optax.softmax_cross_entropy_with_integer_labels(m(x, w), y).mean())(w)
    update, _ = optax.scale_by_adam().update(gradient, optax.scale_by_adam().init(w))
    return w, dict(zip(COLORS, (update, m.normalize(update)), strict=True))


def movement(m, w, update, x, rate):
    """The RMS by which the output moves in one step of this size."""
    moved = m(x, [a - rate * u for a, u in zip(w, update, strict=True)]) - m(x, w)
    return float(jnp.sqrt((moved**2).mean()))


def movements(path):
    """How far one step of a fixed size moves the output, by width."""
    x, y = digits()
    moved = {name: [] for name in COLORS}
    for width in WIDTHS:
        m = mr.MLP(10, 64, width, depth=4)
        w, updates = first_updates(m, x, y)
        for (name, update), rate in zip(updates.items(), (0.001, 0.1), strict=True):
            moved[name].append(movement(m, w, update, x, rate))
    figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
    for name, values in moved.items():
        ax.loglog(WIDTHS, values, marker="o", color=COLORS[name], label=name)
    ax.set(xlabel="width", ylabel="the output moves by (RMS)")
    ax.set_xticks(WIDTHS, [str(width) for width in WIDTHS], minor=False)
    ax.minorticks_off()
    ax.legend(frameon=False)
    figure.savefig(path, dpi=150)


def shares(path):
    """The norm of each array of one update, in its own geometry and over its target: what normalising levels."""
    x, y = digits()
    m = mr.ResMLP(64, 4, 2, 64, 10)
    _, updates = first_updates(m, x, y)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    for ax, (name, update) in zip(axes, updates.items(), strict=True):
        total = m.norm(update)
        own = [float(m.part([leaf]).norm([update[leaf]]) / total) for leaf in range(len(update))]
        labels = [leaf.path for leaf in m.leaves]
        ax.bar(range(len(own)), own, color=COLORS[name])
        ax.set_xticks(range(len(own)), labels, rotation=30, ha="right", fontsize=8)
        ax.set(title=name)
        ax.axhline(1, color="0.6", linewidth=0.8)
    axes[0].set(ylabel="norm over target (largest = 1)")
    figure.savefig(path, dpi=150)


def main(folder=FOLDER):
    """Draws all."""
    movements(Path(folder) / "idea-movement.png")
    shares(Path(folder) / "idea-shares.png")


if __name__ == "__main__":
    main()
