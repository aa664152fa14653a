"""ONNX files: a generator for other runtimes, in which every multiplication is made, also those by zero."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganprune import __version__
from ganprune.core.device import standard_defaults
from ganprune.core.errors import GanpruneError
from ganprune.core.files import replacing
from ganprune.core.random import keep_random_state
from ganprune.masks.apply import check_mask
from ganprune.masks.mask import Mask
from ganprune.masks.names import unwrap
from ganprune.networks.folding import fold_norms
from ganprune.networks.parts import copy_network
from ganprune.networks.sampling import input_shape_of, sample_latents

OPSET = 20
"""The version of ONNX's operations that is asked for."""
TOLERANCE = 1e-5
"""Largest difference between a file's images and the network's, over the largest number in an image or 1."""
BATCHES = (1, 2, 3, 16, 64)
"""Numbers of images with which a file is tried before it takes its place."""


class ExportError(GanpruneError, RuntimeError):
    """A network cannot be written as ONNX, or the file does not compute what the network does."""


@dataclass(frozen=True)
class OnnxFile:
    """What :func:`export_onnx` wrote.

    Attributes:
        path: the file.
        file_bytes: its size.
        opset: the version of ONNX's operations that it uses.
        sparsity: the share of the prunable weights that is zero.
        difference: the largest one between its images, made by ONNX Runtime, and the network's.
    """

    path: Path
    file_bytes: int
    opset: int
    sparsity: float
    difference: float


def export_onnx(
    path: str | Path,
    network: nn.Module,
    mask: Mask | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> OnnxFile:
    """Writes a network in evaluation mode as one ONNX file, for any number of images, atomically.

    The file is run by ONNX Runtime on several numbers of images before it takes its place, and its images are compared
    with the network's own. Its input is called ``latents`` and its output ``images``.

    Args:
        path: file to write, usually ``*.onnx``.
        network: a generator, or any module that takes one tensor and names the shape of it; it is left as it was.
        mask: the mask of its pruned weights, which must hold; None counts the zeros among the prunable weights.
        metadata: remarks by name, each stored as text beside the sparsity and the version of this package.

    Raises:
        MaskError: if a pruned weight is not zero.
        ValueError: if the network does not say what it takes, or the mask does not fit.
        ExportError: if the libraries are missing, the network cannot be written, or the file computes something else.
    """
    onnx, runtime = (_library(name) for name in ("onnx", "onnxruntime"))
    _library("onnxscript")
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    network = unwrap(network)
    latent = input_shape_of(network)
    if latent is None:
        raise ValueError(
            f"network must say what it takes: give {type(network).__name__} an attribute latent_dim, the length of its "
            "latents"
        )
    if mask is not None:
        check_mask(network, mask)
    sparsity = (Mask.nonzero(network) if mask is None else mask).sparsity
    plain = fold_norms(copy_network(network).cpu().float().eval()).eval()
    remarks = {"sparsity": f"{sparsity:.6f}", "ganprune": __version__, **(metadata or {})}
    with replacing(path) as temporary, standard_defaults(), keep_random_state():
        _write(plain, sample_latents(2, latent), temporary)
        opset = _tidy(onnx, temporary, remarks)
        difference = _check(runtime, temporary, plain, latent)
        size = temporary.stat().st_size
    return OnnxFile(Path(path), size, opset, sparsity, difference)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"ONNX files need the library {name}, which is not here: pip install 'ganprune[export]'"
        ) from error


def _write(network: nn.Module, latents: Tensor, path: Path) -> None:
    """One file, weights included, whose number of images is open."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with _quiet():
            torch.onnx.export(
                network,
                (latents,),
                str(path),
                dynamo=True,
                external_data=False,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                input_names=["latents"],
                output_names=["images"],
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the parts it is made of raise
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{type(network).__name__} cannot be written as ONNX: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside the block the exporter says nothing; standard output is for results."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _tidy(onnx: Any, path: Path, remarks: Mapping[str, Any]) -> int:
    """Takes out what names the exporting machine's files, puts remarks in, and returns the version of operations."""
    model = onnx.load(str(path))
    for part in (
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    for key, value in remarks.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = str(key), str(value)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return next(one.version for one in model.opset_import if one.domain == "")


@torch.no_grad()
def _check(runtime: Any, path: Path, network: nn.Module, latent: tuple[int, ...]) -> float:
    """The largest difference over several numbers of images; ExportError if it is too large."""
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in BATCHES:
        latents = sample_latents(count, latent, seed=count)
        expected = network(latents)
        found = torch.from_numpy(session.run(["images"], {"latents": latents.numpy()})[0])
        if found.shape != expected.shape:
            raise ExportError(
                f"the ONNX file makes {tuple(found.shape)} of {count} latents and {type(network).__name__} makes "
                f"{tuple(expected.shape)}; let its forward pass take any number of images"
            )
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ExportError(
                f"the ONNX file's images of {count} latents differ from those of {type(network).__name__} by "
                f"{difference:.3g}; a forward pass that draws random numbers or depends on values cannot be written"
            )
        worst = max(worst, difference)
    return worst
