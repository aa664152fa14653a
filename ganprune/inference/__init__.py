"""Inference: a pruned generator outside of training, where its zeros cost nothing or less.

``tracing`` makes a list of operations (``program``) of any network, with norms folded in. ``sparse_file`` writes and
reads it as non-zero weights and their positions.
"""

from __future__ import annotations

from ganprune.inference.program import FoldedNetwork, InferenceError, Layer, Program, Sum
from ganprune.inference.sparse_file import SparseFile, load_sparse, save_sparse
from ganprune.inference.tracing import trace_program

__all__ = [
    "FoldedNetwork",
    "InferenceError",
    "Layer",
    "Program",
    "SparseFile",
    "Sum",
    "load_sparse",
    "save_sparse",
    "trace_program",
]
