"""Draw the figures of docs/losses.md: what each loss and its twin do to the two gradients, over the margin.

Usage: python scripts/make_loss_figures.py
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from adadpo_lightning.losses import PairwiseLoss, adaptive_twin, available_losses, build_loss, loss_class
from adadpo_lightning.losses.testing import gradients
from adadpo_lightning.types import PairLogps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

FOLDER = Path(__file__).parent.parent / "docs" / "assets" / "losses"
COLOURS = {"chosen": "#1f6fb4", "rejected": "#d1495b"}
COLUMNS = 3


class Path2D(NamedTuple):
    """Pairs along which a loss is drawn, and what the horizontal axis says."""

    pairs: PairLogps
    across: Tensor
    label: str


def path(loss: PairwiseLoss, points: int = 481) -> Path2D:
    """Pairs whose margin grows from one end to the other, both answers moving by the same amount.

    With a reference: rewards of ``m / 2`` and ``-m / 2`` for m in [-6, 6], and answers of ``3 / beta`` tokens, so that
    the twins' coefficient of DPO is ``exp(m / 3)``. Without: means of ``-1.5 +- d / 2`` per token over 30 tokens.
    """
    if loss.needs_reference:
        m = torch.linspace(-6, 6, points, dtype=torch.float64)
        beta = getattr(loss, "beta", 0.1) if loss.sums_tokens else 0.1
        n = torch.full((points,), round(3 / beta))
        zeros = torch.zeros_like(m)
        return Path2D(PairLogps(m / (2 * beta), -m / (2 * beta), n, n, zeros, zeros), m, "margin m")
    d = torch.linspace(-2.4, 2.4, points, dtype=torch.float64)
    n = torch.full((points,), 30)
    return Path2D(PairLogps(n * (d / 2 - 1.5), n * (-d / 2 - 1.5), n, n), d, "margin per token, nats")


def curves(loss: PairwiseLoss, pairs: PairLogps) -> dict[str, Tensor]:
    """``|dL/dv_s|`` for both sides, each of shape (B,)."""
    slopes = gradients(loss, pairs)
    lengths = (1, 1) if loss.sums_tokens else (pairs.chosen_len, pairs.rejected_len)  # d l_s / d v_s
    return {side: (slope * n).abs() for side, slope, n in zip(COLOURS, slopes, lengths, strict=True)}


def draw(axes: Axes, key: str) -> None:
    """One panel: solid the plain loss, dashed its twin, relative to the plain loss's largest gradient."""
    plain = loss_class(key)()
    assert isinstance(plain, PairwiseLoss)  # noqa: S101  # `families` has no others
    line = path(plain)
    drawn = {"-": curves(plain, line.pairs), "--": curves(adaptive_twin(type(plain))(), line.pairs)}
    largest = max(float(curve.max()) for curve in drawn["-"].values())
    for style, sides in drawn.items():
        for (side, colour), width in zip(COLOURS.items(), (2.6, 1.5), strict=True):  # both show where they coincide
            axes.plot(line.across, sides[side] / largest, style, color=colour, linewidth=width)
    axes.set_title(key, fontsize=10)
    axes.set_ylim(-0.05, min(2.1, 1.05 * max(float(c.max()) for s in drawn.values() for c in s.values()) / largest))
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def families() -> dict[str, list[str]]:
    """Keys of the plain pairwise losses by group, `dpo` first; without those that read more than two sums of a pair."""
    found: dict[str, list[str]] = {}
    for key in available_losses():
        loss = build_loss(key)
        reads_more = loss.needs_tails or loss.needs_collisions or loss.needs_lists
        if isinstance(loss, PairwiseLoss) and f"ada{key}" in available_losses() and not reads_more:
            found.setdefault(loss_class(key).group, []).append(key)
    return {group: sorted(keys, key=lambda key: key != "dpo") for group, keys in found.items()}


def figure(group: str, keys: list[str]) -> None:
    """Write the figure of one family."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    rows = math.ceil(len(keys) / COLUMNS)
    drawing, grid = plt.subplots(rows, COLUMNS, figsize=(9, 0.7 + 2.1 * rows), squeeze=False)
    for axes, key in zip(grid.flat, keys, strict=False):
        draw(axes, key)
    for axes in grid.flat[len(keys) :]:
        axes.set_visible(False)
    label = path(loss_class(keys[0])()).label  # type: ignore[arg-type]  # pairwise, see `families`
    for column in range(COLUMNS):
        lowest = [axes for axes in grid[:, column] if axes.get_visible()]
        if lowest:
            lowest[-1].set_xlabel(label, fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("gradient", fontsize=9)
    names = {"chosen": ("-", "chosen"), "rejected": ("-", "rejected")}
    lines = [Line2D([], [], color=COLOURS[side], linestyle=style, label=text) for side, (style, text) in names.items()]
    lines += [Line2D([], [], color="0.3", linestyle=s, label=t) for s, t in (("-", "plain"), ("--", "adaptive twin"))]
    drawing.legend(handles=lines, loc="upper center", ncols=4, frameon=False, fontsize=9)
    drawing.tight_layout(rect=(0, 0, 1, 1 - 0.35 / drawing.get_figheight()))
    FOLDER.mkdir(parents=True, exist_ok=True)
    drawing.savefig(FOLDER / f"{group}.png", dpi=110, metadata={"Software": None})
    plt.close(drawing)


if __name__ == "__main__":
    import matplotlib as mpl

    mpl.use("Agg")
    for name, members in families().items():
        figure(name, members)
        print(f"written: {FOLDER / name}.png")
