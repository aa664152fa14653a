"""Sparse files (``*.gps``): a pruned generator as its non-zero weights and where they are.

A file begins with ``GANPRUNE``, the version and the length of a header in JSON, which names the layers and says where
their numbers lie in the payload behind it. Positions of non-zero weights are differences of flat indices in the weight
tensor, ordered (out, in, height, width), as variable-length numbers. The last four bytes are the CRC-32 of all bytes
before them (ISO 3309, as in PNG and ``zlib.crc32``), so that no damaged file draws a wrong image. All numbers are
little-endian. Nothing in it is ever executed. The page of the course that draws images in the browser reads the same
files.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ganprune.core.files import replacing
from ganprune.core.tensors import CheckpointError
from ganprune.inference.program import FoldedNetwork, InferenceError, Layer, Program, size_of
from ganprune.inference.sparse_header import check_header, layer_entry, layer_from
from ganprune.inference.tracing import trace_program
from ganprune.inference.varints import decode_varints, encode_varints

MAGIC = b"GANPRUNE"
VERSION = 2


@dataclass(frozen=True)
class SparseFile:
    """What :func:`load_sparse` reads.

    Attributes:
        program: the layers; ``sparse_twin`` makes images of it without multiplying by zeros.
        network: the same layers as a PyTorch module, which multiplies by all weights.
        metadata: what was given to :func:`save_sparse`.
    """

    program: Program
    network: nn.Module
    metadata: dict[str, Any]

    def __repr__(self) -> str:
        program = self.program
        return (
            f"SparseFile({len(program.operations)} operations, {program.nonzeros:,} weights that are not zero, "
            f"sparsity {program.sparsity:.4f}, metadata {self.metadata})"
        )


def save_sparse(
    path: str | Path,
    network: nn.Module | Program,
    metadata: Mapping[str, Any] | None = None,
    labels: int | None = None,
) -> int:
    """Writes the non-zero weights of a network in evaluation mode, atomically; norms are folded in.

    Args:
        path: file to write, usually ``*.gps``.
        network: a generator whose layers stand in one line, without branches and groups, or its program.
        metadata: JSON-able remarks, such as the sparsity, the seed, quality and the command.
        labels: the one class that is drawn from the file, of an adapted generator that takes labels.

    Returns:
        The size of the file in bytes.

    Raises:
        InferenceError: if the network branches, has groups, or computes something that a program does not have.
        ValueError: if the metadata holds what JSON cannot hold. Nothing is written then.
    """
    if isinstance(network, Program) and labels is not None:
        raise ValueError("labels must be None for a program, whose weights are what they are")
    program = network if isinstance(network, Program) else trace_program(network, labels=labels)
    payload, entries = bytearray(), []
    for number, layer in enumerate(program.operations):
        entries.append(layer_entry(_check_straight(program, number, layer), **_pack(payload, layer)))
    header = {"latent": program.latent, "image": program.image, "layers": entries}
    try:
        text = json.dumps({**header, "metadata": dict(metadata or {})}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"metadata must be values that JSON can hold (finite numbers, strings, lists, mappings): {error}"
        ) from error
    text += b" " * (-len(text) % 4)
    whole = MAGIC + struct.pack("<II", VERSION, len(text)) + text + bytes(payload)
    whole += struct.pack("<I", zlib.crc32(whole))
    with replacing(path) as temporary:
        temporary.write_bytes(whole)
    return len(whole)


def load_sparse(path: str | Path) -> SparseFile:
    """Reads what :func:`save_sparse` wrote.

    Raises:
        CheckpointError: if the file is missing, damaged, of another version, or does not agree with itself.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"sparse file not found: expected a file at {path}")
    try:
        program, metadata = _parse(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no whole sparse file: {error}") from error
    return SparseFile(program, FoldedNetwork(program).eval(), metadata)


def _check_straight(program: Program, number: int, layer: Any) -> Layer:
    remedy = "a twin made by gp.sparse_twin runs it, and gp.export_onnx writes it dense"
    if not isinstance(layer, Layer) or layer.source != number:
        raise InferenceError(
            f"{layer.name} reads more than the layer before it, and a sparse file holds networks without branches; "
            f"{remedy}"
        )
    if layer.groups != 1:
        raise InferenceError(
            f"{layer.name} has {layer.groups} groups, and a sparse file holds layers of one group; {remedy}"
        )
    return layer


def _pack(payload: bytearray, layer: Any) -> dict[str, Any]:
    """Puts a layer's numbers behind a payload, and says where they lie."""
    flat = _by_output(layer.kind, layer.weight.numpy()).reshape(-1)
    positions = np.flatnonzero(flat)
    places = []
    for part in (
        encode_varints(np.diff(positions, prepend=-1)),
        flat[positions].astype("<f4").tobytes(),
        layer.bias.numpy().astype("<f4").tobytes(),
    ):
        places.append((len(payload), len(part)))
        payload += part + b"\0" * (-len(part) % 4)
    (start, size), (values, _), (bias, _) = places
    return {
        "nonzeros": len(positions),
        "positions": {"offset": start, "bytes": size},
        "values": {"offset": values, "count": len(positions)},
        "bias": {"offset": bias, "count": len(layer.bias)},
    }


def _by_output(kind: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """A weight with its outputs first; it is its own inverse."""
    return weight.swapaxes(0, 1) if kind == "conv_transpose2d" else weight


def _parse(data: bytes) -> tuple[Program, dict[str, Any]]:
    if data[:8] != MAGIC or len(data) < 16:
        raise ValueError(f"it does not begin with {MAGIC.decode()}")
    version, length = struct.unpack("<II", data[8:16])
    if version != VERSION:
        raise ValueError(
            f"it has version {version}, and this package reads version {VERSION}; write it again from its checkpoint"
        )
    data, checksum = data[:-4], data[-4:]
    if zlib.crc32(data) != int.from_bytes(checksum, "little"):
        raise ValueError(
            "its checksum is another, so bytes of it were changed or lost; fetch or write it again"
        )
    if length % 4 or 16 + length > len(data):
        raise ValueError(
            f"its header should have {length} bytes, a multiple of 4, in a file of {len(data)} bytes"
        )
    payload = data[16 + length :]
    header = json.loads(data[16 : 16 + length].decode("utf-8"))
    check_header(header, len(payload))
    layers = []
    for number, entry in enumerate(header["layers"]):
        layers.append(layer_from(entry, number, *_unpack(payload, entry)))
    program = Program(tuple(header["latent"]), tuple(header["image"]), tuple(layers))
    return program, header["metadata"]


def _unpack(payload: bytes, entry: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a layer whose entry was checked."""
    where = entry["positions"]
    steps = decode_varints(payload[where["offset"] : where["offset"] + where["bytes"]])
    shape, name = entry["weight"], entry["name"]
    positions = np.cumsum(steps) - 1
    if len(steps) != entry["nonzeros"]:
        raise ValueError(f"{name} has {len(steps)} positions for {entry['nonzeros']} non-zero weights")
    if len(steps) and (int(steps.min()) < 1 or int(positions[-1]) >= size_of(tuple(shape))):
        raise ValueError(
            f"positions of {name} must ascend and stay inside of its {size_of(tuple(shape))} weights"
        )
    values, bias = (
        np.frombuffer(payload, "<f4", entry[part]["count"], entry[part]["offset"]).astype(np.float32)
        for part in ("values", "bias")
    )
    if not (np.isfinite(values).all() and np.isfinite(bias).all()):
        raise ValueError(f"weights of {name} must be finite, got NaN or infinity")
    ordered = [shape[1], shape[0], *shape[2:]] if entry["type"] == "conv_transpose2d" else shape
    weight = np.zeros(size_of(tuple(shape)), np.float32)
    weight[positions] = values
    weight = np.ascontiguousarray(_by_output(entry["type"], weight.reshape(ordered)))
    return torch.from_numpy(weight), torch.from_numpy(bias)
