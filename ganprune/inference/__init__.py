"""Inference: a pruned generator outside of training, where its zeros cost nothing or less.

``arguments`` says what a network is called with. ``tracing`` makes a list of operations (``program``) of any network,
with norms folded in. ``sparse_file`` writes and reads it as non-zero weights and their positions. ``twin`` computes it
without multiplying by zeros: ``layout`` says where each value lies in memory, ``tables`` what is multiplied with what,
and ``kernels`` and ``lanes`` do it. ``onnx_file`` writes the dense network for other runtimes, and
``onnx_reasons`` says why it cannot.
"""

from __future__ import annotations

from ganprune.inference.onnx_file import OnnxFile, export_onnx
from ganprune.inference.onnx_reasons import ExportError
from ganprune.inference.program import FoldedNetwork, InferenceError, Layer, Program, Sum
from ganprune.inference.sparse_file import SparseFile, load_sparse, save_sparse
from ganprune.inference.tracing import trace_program
from ganprune.inference.twin import SparseTwin, sparse_twin

__all__ = [
    "ExportError",
    "FoldedNetwork",
    "InferenceError",
    "Layer",
    "OnnxFile",
    "Program",
    "SparseFile",
    "SparseTwin",
    "Sum",
    "export_onnx",
    "load_sparse",
    "save_sparse",
    "sparse_twin",
    "trace_program",
]
