"""Tensors on disk: safetensors files with JSON metadata, and a hash of a network's weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ganprune.core.device import standard_defaults
from ganprune.core.errors import GanpruneError
from ganprune.core.files import replacing

FORMAT = "ganprune-1"


class CheckpointError(GanpruneError, RuntimeError):
    """A checkpoint is missing, damaged, of another kind, or does not fit; the message says which and what to do."""


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and JSON-able metadata to one file, atomically: the old file stays until the new one is whole.

    Raises:
        ValueError: if the metadata holds what JSON cannot hold. Nothing is written then.
    """
    try:
        remarks = json.dumps({"format": FORMAT, **metadata})
    except TypeError as error:
        raise ValueError(
            f"metadata must be values that JSON can hold (numbers, strings, lists, mappings): {error}"
        ) from error
    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, {"ganprune": remarks})


def open_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the remarks of any safetensors file that is there, whoever wrote it.

    Raises:
        CheckpointError: if the file is damaged.
    """
    try:
        with standard_defaults(), safe_open(str(path), framework="pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
            return tensors, handle.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the metadata of a file that :func:`write_safetensors` wrote.

    Raises:
        CheckpointError: if the file is missing, damaged, or was not written by this package.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint not found: expected a file at {path}")
    tensors, remarks = open_safetensors(path)
    try:
        metadata = json.loads(remarks.get("ganprune", "{}"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not written by ganprune (format {metadata.get('format')!r}, want {FORMAT!r})"
        )
    return tensors, metadata


def hash_weights(network: nn.Module) -> str:
    """First twelve hexadecimal digits of the SHA-256 over names, types, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{values.dtype}|{tuple(values.shape)}|".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
