"""Tensors that refuse float64, as those on Apple's GPUs do, for machines that have none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class SinglePrecision(Tensor):
    """Says that it lies on "meta", computes on the CPU, and raises TypeError when float64 is asked for."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> SinglePrecision:
        self = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=torch.device("meta")
        )
        self.held = held
        return self

    def __init__(self, held: Tensor) -> None:
        """Nothing more to do."""

    def tolist(self) -> Any:
        """The values, as torch's own method for wrappers does not give them."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        leaves = target is not None and torch.device(target).type == "cpu"
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("dtype") == torch.float64 and not leaves:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it"
            )
        args, kwargs = tree_map(lambda x: x.held if isinstance(x, cls) else x, (args, kwargs))
        result = function(*args, **kwargs)
        if leaves:
            return result
        return tree_map(lambda x: cls(x) if isinstance(x, Tensor) else x, result)
