"""Rows and tensors in, ``figures``, ``tables`` and ``frames`` of a slider out."""

from ganprune.plots.figures import (
    COLOURS,
    PALETTE,
    add_legend,
    show_curve,
    show_layer_density,
    show_losses,
    show_mask,
    show_sample_rows,
    show_samples,
    show_weights,
)
from ganprune.plots.frames import Frames, show_frames
from ganprune.plots.tables import TEXT_WIDTH, Table

__all__ = [
    "COLOURS",
    "PALETTE",
    "TEXT_WIDTH",
    "Frames",
    "Table",
    "add_legend",
    "show_curve",
    "show_frames",
    "show_layer_density",
    "show_losses",
    "show_mask",
    "show_sample_rows",
    "show_samples",
    "show_weights",
]
