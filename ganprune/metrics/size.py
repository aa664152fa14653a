"""How large a network is: parameters, non-zeros, bytes of its file, with and without compression."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import safetensors.torch
from torch import nn

from ganprune.masks.weights import prunable_weights


def count_parameters(network: nn.Module) -> int:
    """Number of parameters; shared ones count once, buffers do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_nonzero(network: nn.Module) -> int:
    """Number of parameters that are not zero; under spectral norm the raw weight is counted."""
    return sum(int(parameter.count_nonzero()) for parameter in network.parameters())


def sparsity(network: nn.Module, protect: Iterable[str] = ()) -> float:
    """Share of zeros among the prunable weights, a number in [0, 1].

    Args:
        network: any module.
        protect: names that pruning leaves alone, as for :func:`ganprune.prunable_weights`.

    Raises:
        ValueError: if the network has no prunable weight.
    """
    weights = prunable_weights(network, protect).values()
    total = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / total


def network_sparsity(network: nn.Module) -> float:
    """Share of zeros among all parameters, normalisation and biases included.

    Raises:
        ValueError: if the network has no parameters.
    """
    total = count_parameters(network)
    if total == 0:
        raise ValueError(f"network {type(network).__name__} has no parameters")
    return 1 - count_nonzero(network) / total


def file_bytes(network: nn.Module) -> int:
    """Size in bytes of the network's state dict as a safetensors file, where zeros are stored like any number."""
    return len(_serialise(network))


def compressed_bytes(network: nn.Module, level: int = 6) -> int:
    """Size in bytes of the same file after zlib compression: what sparsity saves on a disk or a wire."""
    return len(zlib.compress(_serialise(network), level))


def _serialise(network: nn.Module) -> bytes:
    """The state dict as the bytes of a safetensors file; a tensor under two names is stored once."""
    tensors, seen = {}, set()
    for name, tensor in network.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        tensors[name] = tensor.detach().cpu().contiguous()
    return safetensors.torch.save(tensors)
