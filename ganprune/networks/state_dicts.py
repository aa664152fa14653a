"""Weights from files of other people: safetensors, and ``.pt`` files by ``torch.load(weights_only=True)`` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.device import standard_defaults
from ganprune.core.tensors import CheckpointError, open_safetensors
from ganprune.masks.names import unwrap
from ganprune.networks.checkpoints import load_network, misfits

PREFIXES = ("module.", "_orig_mod.", "network.")
"""What wrappers (data parallelism, compilation, an adapter) put before every key."""


def load_weights(network: nn.Module, path: str | Path, key: str | None = None, name: str = "network") -> str:
    """Copies a state dict from a file into a network; code in the file is never run.

    Many files hold more than one network: under keys such as "state_dict" or "g_ema", or with a prefix before the names
    of each. Without ``key`` the one is taken that fits, if there is just one.

    Args:
        network: changed in place, once the whole state dict is known to fit; an adapted network takes the weights of
            the one inside.
        path: a file written by ``safetensors.torch.save_file``, or by ``torch.save`` (which is read by
            ``torch.load(weights_only=True)``).
        key: of the state dict in the file, such as "g_ema" or "state_dict/generator"; "" for the outermost.
        name: of the network, in messages.

    Returns:
        The key of what was taken, "" for the outermost.

    Raises:
        CheckpointError: if the file is missing or damaged, holds more than tensors and plain values, or nothing in it
            fits (every misfit is listed), or several state dicts fit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"weights not found: expected a file at {path}")
    found = dict(_state_dicts(_read(path)))
    if not found:
        raise CheckpointError(f"{path} holds no tensors by name")
    inside = unwrap(network)
    chosen = (
        found if key is None else {one: tensors for one, tensors in found.items() if one == key.strip("/")}
    )
    if not chosen:
        raise CheckpointError(f"{path} has no state dict {key!r}; it has {_listed(found)}")
    fitting = {one: full for one, tensors in chosen.items() if (full := _fit(inside, tensors)) is not None}
    if len(fitting) > 1:
        raise CheckpointError(
            f"{path} holds several state dicts that fit the {name}: {_listed(fitting)}; choose one by key= "
            f"(--{name}-weights-key on the command line)"
        )
    if not fitting:
        _refuse(inside, chosen, name, path)
    ((taken, tensors),) = fitting.items()
    load_network(inside, {f"{name}/{one}": tensor for one, tensor in tensors.items()}, name, path)
    return taken


def _read(path: Path) -> Any:
    """What a file holds, on the CPU."""
    with path.open("rb") as file:
        head = file.read(2)
    if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04") or path.suffix in (
        ".pt",
        ".pth",
        ".ckpt",
        ".bin",
    ):
        try:
            with standard_defaults():
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of a damaged pickle almost anything
            words = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path} is damaged, or holds more than tensors and plain values: {words}. It is never unpickled, "
                "because that can run code; where you trust it, save model.state_dict() from it by "
                "safetensors.torch.save_file"
            ) from error
    try:
        tensors, remarks = open_safetensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; write one with safetensors.torch.save_file") from error
    if "ganprune" in remarks:
        raise CheckpointError(
            f"{path} is a checkpoint of a whole GAN; load it by gp.load (--checkpoint on the command line)"
        )
    return tensors


def _state_dicts(item: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All mappings from names to tensors, by the way to them, and the parts of them that share a first word."""
    if not isinstance(item, Mapping):
        return
    tensors = {str(one): value for one, value in item.items() if isinstance(value, Tensor)}
    while tensors and (prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in tensors)), None)):
        tensors = {one.removeprefix(prefix): value for one, value in tensors.items()}
    if tensors:
        yield key, tensors
        words = dict.fromkeys(one.partition(".")[0] for one in tensors if "." in one)
        for word in words if len(words) > 1 else ():
            part = {k.removeprefix(f"{word}."): v for k, v in tensors.items() if k.startswith(f"{word}.")}
            yield f"{key}/{word}".strip("/"), part
    for one, value in item.items():
        yield from _state_dicts(value, f"{key}/{one}".strip("/"))


def _fit(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The state dict, if the network takes it; counters that older files lack are those of the network."""
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
    full = {**counters, **tensors}
    return None if misfits(network, full) else full


def _refuse(network: nn.Module, found: Mapping[str, Mapping[str, Tensor]], name: str, path: Path) -> None:
    """Raises for the state dict that comes nearest."""
    problems = {key: misfits(network, tensors) for key, tensors in found.items()}
    key = min(problems, key=lambda one: len(problems[one]))
    where = f" (state dict {key!r})" if key else ""
    shown = problems[key][:12] + ([f"and {len(problems[key]) - 12} more"] if len(problems[key]) > 12 else [])
    raise CheckpointError(f"the {name} in {path}{where} does not fit: " + "; ".join(shown))


def _listed(found: Mapping[str, Any]) -> str:
    """The keys, without those of parts of what is there anyway."""
    return ", ".join(repr(key) for key in found if key.rpartition("/")[0] not in found or not key)
