"""ONNX files: a generator for other runtimes, in which every multiplication is made, also those by zero."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganprune import __version__
from ganprune.core.device import standard_defaults
from ganprune.core.errors import GanpruneError
from ganprune.core.files import replacing
from ganprune.core.modes import setting
from ganprune.core.random import keep_random_state
from ganprune.inference.arguments import name_of, named_inputs, plain_copy
from ganprune.inference.onnx_reasons import ExportError, check_chance, make_images, reason_of
from ganprune.masks.apply import check_mask
from ganprune.masks.mask import Mask
from ganprune.masks.names import find_adapter, unwrap

OPSET = 20
"""The version of ONNX's operations that is asked for."""
TOLERANCE = 1e-5
"""Largest difference between a file's images and the network's, over their range: 2, as of images in [-1, 1], or what
a generator without a last tanh makes before its images are cut."""
BATCHES = (1, 2, 3, 16, 64)
"""Numbers of images with which a file is tried before it takes its place."""


@dataclass(frozen=True)
class OnnxFile:
    """What :func:`export_onnx` wrote.

    Attributes:
        path: the file.
        file_bytes: its size.
        opset: the version of ONNX's operations that it uses.
        inputs: the names of its inputs.
        sparsity: the share of the prunable weights that is zero; None if no layer is known to be prunable.
        nonzeros: how many of them are not zero; None likewise.
        difference: the largest one between its images, made by ONNX Runtime, and the network's.
    """

    path: Path
    file_bytes: int
    opset: int
    inputs: tuple[str, ...]
    sparsity: float | None
    nonzeros: int | None
    difference: float


def export_onnx(
    path: str | Path,
    network: nn.Module,
    mask: Mask | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> OnnxFile:
    """Writes a network in evaluation mode as one ONNX file, for any number of images, atomically.

    The file is run by ONNX Runtime on several numbers of images before it takes its place, and its images are compared
    with the network's own. Its output is called ``images``. Its inputs are what the network is called with:
    ``latents``, and for one in an adapter also ``labels`` (int64 (N,), or float32 rows), ``noise_0`` and so on, or
    ``inputs``; all with the same N in front. An adapted generator's images are in [-1, 1], as everywhere here.

    Args:
        path: file to write, usually ``*.onnx``.
        network: a generator, perhaps adapted, or any module that takes one tensor and names the shape of it; it is left
            as it was.
        mask: the mask of its pruned weights, which must hold; None counts the zeros among the prunable weights.
        metadata: remarks by name, each stored as text beside the sparsity and the version of this package.

    Raises:
        MaskError: if a pruned weight is not zero.
        ValueError: if the network does not say what it takes, or the mask does not fit.
        ExportError: if the libraries are missing, the network draws random numbers in its forward pass or cannot be
            written, or the file computes something else.
    """
    onnx, runtime = (_library(name) for name in ("onnx", "onnxruntime"))
    _library("onnxscript")
    plain = plain_copy(network)
    network = unwrap(network)
    if mask is not None:
        check_mask(network, mask)
    known = mask or known_zeros(network)
    sparsity, nonzeros = (None, None) if known is None else (known.sparsity, known.kept)
    remarks = {} if sparsity is None else {"sparsity": f"{sparsity:.6f}"}
    remarks |= {"ganprune": __version__, **(metadata or {})}
    with replacing(path) as temporary, standard_defaults(), keep_random_state():
        try:
            inputs = named_inputs(plain, 2)
        except GanpruneError as error:
            raise ExportError(str(error)) from error
        check_chance(plain, inputs)
        _write(plain, inputs, temporary)
        opset = _tidy(onnx, temporary, remarks)
        difference = _check(runtime, temporary, plain)
        size = temporary.stat().st_size
    return OnnxFile(Path(path), size, opset, tuple(inputs), sparsity, nonzeros, difference)


def known_zeros(network: nn.Module) -> Mask | None:
    """The mask of the weights that are not zero; None where no layer is known to be prunable."""
    try:
        return Mask.nonzero(network)
    except ValueError:
        return None


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"ONNX files need the library {name}, which is not here: pip install 'ganprune[export]'"
        ) from error


def _write(network: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    """One file, weights included, whose number of images is open, and the same for all inputs."""
    images = {0: torch.export.Dim("batch", min=1)}
    try:
        with _quiet():
            torch.onnx.export(
                _Positional(network),
                tuple(inputs.values()),
                str(path),
                dynamo=True,
                external_data=False,
                dynamic_shapes=((images,) * len(inputs),),
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=["images"],
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the parts it is made of raise
        raise ExportError(
            f"{name_of(network)} cannot be written as ONNX: {reason_of(error, network)}"
        ) from error


class _Positional(nn.Module):
    """A network whose arguments have no names, so that one form of shapes fits all."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *arguments: Tensor) -> Any:
        return self.network(*arguments)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside the block the exporter says nothing; what it could not do is said in one sentence after it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
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
def _check(runtime: Any, path: Path, network: nn.Module) -> float:
    """The largest difference over several numbers of images; ExportError if it is too large."""
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    worst, name = 0.0, name_of(network)
    try:
        session = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has errors of its own
        raise ExportError(
            f"ONNX Runtime cannot load the file of {name}: {' '.join(str(error).split())[:300]}"
        ) from error
    if not all(isinstance(one.shape[0], str) for one in session.get_inputs()):
        raise ExportError(
            f"the ONNX file of {name} would take one number of images alone, because the forward pass makes it a "
            "number of Python; write x.shape[0] where it says len(x), and no number of images into a view"
        )
    for count in BATCHES:
        inputs = named_inputs(network, count, seed=count)
        expected = make_images(network, inputs)
        fed = {key: one.numpy() for key, one in inputs.items()}
        found = torch.from_numpy(session.run(["images"], fed)[0])
        if found.shape != expected.shape:
            raise ExportError(
                f"the ONNX file makes {tuple(found.shape)} of {count} inputs and {name} makes "
                f"{tuple(expected.shape)}; let its forward pass take any number of images"
            )
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE * _range_of(network, inputs, expected):
            raise ExportError(
                f"the ONNX file's images of {count} inputs differ from those of {name} by {difference:.3g}; a forward "
                "pass that depends on values or on the number of images cannot be written"
            )
        worst = max(worst, difference)
    return worst


def _range_of(network: nn.Module, inputs: dict[str, Tensor], images: Tensor) -> float:
    """What the images' rounding is measured by: their range before they are cut, at least that of [-1, 1]."""
    adapter = find_adapter(network)
    if adapter is not None and adapter.clamp:
        with setting((adapter, "clamp", False)):
            images = network(*inputs.values())
    return max(2.0, float(images.max() - images.min()))
