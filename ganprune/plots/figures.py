"""Rows and tensors in, figures out: samples, losses, quality against sparsity, layer densities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from torch import Tensor
from torchvision.utils import make_grid

from ganprune.records.statistics import interval

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart: blue, orange, green, pink, yellow, sky, black."""

COLOURS = {
    **dict(zip(("discriminator", "generator"), PALETTE, strict=False)),
    **dict(zip(("magnitude", "taylor", "snip", "grasp", "random", "synflow"), PALETTE, strict=False)),
    **dict(zip(("global", "uniform", "erk", "lamp", "per-output"), PALETTE, strict=False)),
    "dense": PALETTE[6],
    "floor": PALETTE[6],
}
"""Thing → its colour in every figure; what is not here gets a colour of the palette that its figure has not used."""


def show_samples(images: Tensor, columns: int = 8, title: str | None = None, ax: Axes | None = None) -> Axes:
    """A grid of images.

    Args:
        images: (N, C, H, W) in [-1, 1].
        columns: images per row.
        title: above the grid.
        ax: drawn into this one; None for a new figure.
    """
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}")
    rows = -(-len(images) // columns)
    ax = ax or _new_axes(0.7 * columns, 0.7 * rows + (0.3 if title else 0))
    grid = make_grid(
        images.detach().cpu().float(), nrow=columns, padding=1, normalize=True, value_range=(-1, 1)
    )
    ax.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    ax.set_axis_off()
    if title:
        ax.set_title(title)
    return ax


def show_sample_rows(rows: Mapping[str, Tensor], title: str | None = None) -> Figure:
    """One row of images per entry, labelled at the left: before and after, or a sweep.

    Args:
        rows: label → images (N, C, H, W) in [-1, 1], the same N in each.
        title: above the figure.
    """
    count = max(len(images) for images in rows.values())
    size = (0.75 * count + 2.2, 0.82 * len(rows) + (0.3 if title else 0))
    figure, axes = plt.subplots(len(rows), 1, figsize=size, squeeze=False, layout="constrained")
    for ax, (label, images) in zip(axes[:, 0], rows.items(), strict=True):
        show_samples(images, columns=count, ax=ax)
        ax.set_axis_on()
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize="x-large")
    if title:
        figure.suptitle(title)
    return figure


def show_losses(history: Sequence[Mapping[str, float]], ax: Axes | None = None) -> Axes:
    """Both losses against the step, from ``TrainState.history``."""
    ax = ax or _new_axes(6, 3)
    steps = [row["step"] for row in history]
    for name, style in (("discriminator", "-"), ("generator", "--")):
        ax.plot(steps, [row[f"{name}_loss"] for row in history], style, color=COLOURS[name], label=name)
    ax.set(xlabel="generator updates (steps)", ylabel="loss")
    add_legend(ax)
    return ax


def show_curve(
    rows: Iterable[Mapping[str, Any]],
    x: str = "sparsity",
    y: str = "digit_fid",
    by: str = "score",
    floor: float | None = None,
    control: Sequence[float] | None = None,
    log: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """A measure against sparsity, one line per group; a band is the 95% interval over seeds.

    Args:
        rows: records with the keys ``x``, ``y``, ``by``; rows with equal x and group are different seeds.
        x: key of the horizontal axis.
        y: key of the vertical axis.
        by: key of the groups.
        floor: a dotted line, such as the digit-FID of real images.
        control: values of the dense control, one per seed: a dashed line with its band.
        log: logarithmic vertical axis; the mean is then geometric.
        ax: drawn into this one; None for a new figure.
    """
    ax = ax or _new_axes(6.5, 4)
    groups: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        groups.setdefault(str(row[by]), {}).setdefault(float(row[x]), []).append(float(row[y]))
    colours = _colours(groups)
    for number, (label, points) in enumerate(groups.items()):
        colour, marker = colours[label], "osD^v<>"[number % 7]
        places = sorted(points)
        means = [interval(points[place], log=log) for place in places]
        ax.plot(places, [m.mean for m in means], marker=marker, color=colour, label=label)
        low, high = np.array([m.low for m in means]), np.array([m.high for m in means])
        ax.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    if control is not None:
        mean = interval(control, log=log)
        ax.axhline(mean.mean, color=COLOURS["dense"], linestyle="--", label="dense, trained just as long")
        if mean.n > 1:
            ax.axhspan(mean.low, mean.high, color=COLOURS["dense"], alpha=0.1, linewidth=0)
    if floor is not None:
        ax.axhline(floor, color=COLOURS["floor"], linestyle=":", label="floor (real images)")
    if log:
        ax.set_yscale("log")
    ax.set(
        xlabel=f"{x} (share of zeros)" if x == "sparsity" else x, ylabel=y.replace("digit_fid", "digit-FID")
    )
    add_legend(ax)
    return ax


def show_layer_density(reports: Mapping[str, Sequence[Mapping[str, Any]]], ax: Axes | None = None) -> Axes:
    """Density of each layer as grouped bars.

    Args:
        reports: label → rows with the keys "name" and "sparsity", such as ``Mask.layers()`` gives. The rows may come
            in any order and need not name the same layers; a layer that a report lacks has no bar there.
        ax: drawn into this one; None for a new figure.

    Raises:
        ValueError: if there is no row.
    """
    names = list(dict.fromkeys(str(row["name"]) for rows in reports.values() for row in rows))
    if not names:
        raise ValueError("reports must have at least one row, got none")
    ax = ax or _new_axes(6.5, 3.2)
    width, colours = 0.8 / len(reports), _colours(reports)
    for number, (label, rows) in enumerate(reports.items()):
        middle = (number - (len(reports) - 1) / 2) * width
        places = [names.index(str(row["name"])) + middle for row in rows]
        ax.bar(places, [1 - row["sparsity"] for row in rows], width, label=label, color=colours[label])
    ax.set_xticks(range(len(names)), map(_short_name, names), rotation=90 if len(names) > 8 else 0)
    ax.set(xlabel="layer", ylabel="density (share kept)", ylim=(0, 1))
    add_legend(ax)
    return ax


def show_mask(mask: Tensor, title: str | None = None, ax: Axes | None = None) -> Axes:
    """One layer's mask as a picture: kept weights dark, pruned ones light; (rows, columns × kernel positions)."""
    ax = ax or _new_axes(6, 3.2)
    dark = mask.detach().cpu().flatten(1).numpy()
    ax.imshow(dark, cmap="Greys", aspect="auto", interpolation="nearest", vmin=0, vmax=1)
    ax.set(xlabel="column × kernel position", ylabel="row of the weight tensor", title=title)
    return ax


def show_weights(
    weights: Mapping[str, Tensor], threshold: float | None = None, bins: int = 101, ax: Axes | None = None
) -> Axes:
    """Histogram of the weights of each layer; dashed lines at ±threshold."""
    ax = ax or _new_axes(6.5, 3.2)
    colours = _colours(weights)
    for name, weight in weights.items():
        values, label = weight.detach().cpu().float().flatten().numpy(), _short_name(name)
        ax.hist(values, bins, histtype="step", density=True, label=label, color=colours[name])
    if threshold is not None:
        for sign in (-1, 1):
            ax.axvline(sign * threshold, color="black", linestyle="--")
    ax.set(xlabel="weight", ylabel="probability density", yscale="log")
    add_legend(ax)
    return ax


def _new_axes(width: float, height: float) -> Axes:
    """The axes of a new figure, sizes in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _short_name(weight: str) -> str:
    return weight.removeprefix("layers.").removesuffix(".weight")


def _colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label of one figure: its own, or the next one of the palette that is free."""
    labels = list(labels)
    own = {label: COLOURS[label] for label in labels if label in COLOURS}
    free = [colour for colour in PALETTE if colour not in own.values()] or list(PALETTE)
    others = [label for label in labels if label not in own]
    return {**own, **{label: free[number % len(free)] for number, label in enumerate(others)}}


def add_legend(ax: Axes) -> None:
    """A legend under the axis' label, where it covers no curve; in one column where two are wider than the axes."""
    used = ax.xaxis.get_tightbbox()
    depth = ax.bbox.y0 - (used.y0 if used is not None else ax.bbox.y0)
    below = ax.transAxes + ScaledTranslation(0, -depth / ax.figure.dpi - 0.08, ax.figure.dpi_scale_trans)
    where: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 0}
    for columns in (2, 1):
        legend = ax.legend(ncols=columns, bbox_transform=below, **where)
        if legend.get_window_extent().width <= ax.bbox.width:
            break
