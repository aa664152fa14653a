"""A mask: for every prunable weight, whether it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.checks import check_number
from ganprune.core.errors import GanpruneError
from ganprune.core.random import seeded, step_seed
from ganprune.masks.names import canonical_name
from ganprune.masks.weights import prunable_weights


class MaskError(GanpruneError, RuntimeError):
    """A mask does not hold, or can no longer be kept; the message says where and why."""


def check_sparsity(sparsity: Any, name: str = "sparsity") -> float:
    """The sparsity as a float.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not in [0, 1); NaN is not.
    """
    return check_number(name, sparsity, "[0, 1)")


def pruned_count(sparsity: float, total: int) -> int:
    """How many of ``total`` weights a sparsity in [0, 1) prunes: the nearest integer, but never all."""
    return min(round(sparsity * total), max(total - 1, 0))


class Mask(Mapping[str, Tensor]):
    """A checked, immutable mapping from canonical weight names to bool tensors; True means kept.

    A mask belongs to one network. Layers that it does not mention are not prunable and do not count. What the mapping
    gives out are copies, so that nobody can change a mask that somebody else keeps.

    Args:
        layers: weight name → bool tensor in the shape of the weight.

    Raises:
        TypeError: if a value is not a bool tensor.
        ValueError: if there is no layer, or two names become one.
    """

    def __init__(self, layers: Mapping[str, Tensor]) -> None:
        self._layers: dict[str, Tensor] = {}
        for name, kept in layers.items():
            if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
                got = kept.dtype if isinstance(kept, Tensor) else type(kept).__name__
                raise TypeError(f"mask of {name!r} must be a bool tensor (True = kept), got {got}")
            key = canonical_name(name)
            if key in self._layers:
                raise ValueError(f"mask has two entries whose canonical name is {key!r}")
            self._layers[key] = kept.detach().clone(memory_format=torch.contiguous_format)
        if not self._layers:
            raise ValueError("mask must have at least one layer, got none")
        self._counts: dict[str, int] | None = None

    @classmethod
    def dense(cls, network: nn.Module, protect: Iterable[str] = ()) -> Mask:
        """The mask that keeps every prunable weight."""
        weights = prunable_weights(network, protect)
        return cls({key: torch.ones_like(weight, dtype=torch.bool) for key, weight in weights.items()})

    @classmethod
    def nonzero(cls, network: nn.Module, protect: Iterable[str] = ()) -> Mask:
        """The mask that keeps the weights which are not zero now."""
        return cls({key: weight.detach() != 0 for key, weight in prunable_weights(network, protect).items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._layers[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def _kept_by_layer(self) -> dict[str, int]:
        if self._counts is None:
            counts = torch.stack([kept.count_nonzero() for kept in self._layers.values()]).tolist()
            self._counts = dict(zip(self._layers, counts, strict=True))
        return self._counts

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        return sum(kept.numel() for kept in self._layers.values())

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return sum(self._kept_by_layer().values())

    @property
    def pruned(self) -> int:
        """Number of weights pruned."""
        return self.total - self.kept

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is pruned, in [0, 1]."""
        return self.pruned / self.total

    @property
    def density(self) -> float:
        """Share of the prunable weights that is kept, in [0, 1]."""
        return self.kept / self.total

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each layer's mask, by name."""
        return {key: tuple(kept.shape) for key, kept in self._layers.items()}

    def layers(self) -> list[dict[str, Any]]:
        """One row per layer: name, shape, total, kept, sparsity."""
        return [
            {
                "name": key,
                "shape": tuple(mask.shape),
                "total": mask.numel(),
                "kept": self._kept_by_layer()[key],
                "sparsity": 1 - self._kept_by_layer()[key] / mask.numel(),
            }
            for key, mask in self._layers.items()
        ]

    def _paired(self, other: Mask) -> list[tuple[str, Tensor, Tensor]]:
        if not isinstance(other, Mask):
            raise TypeError(f"other must be a Mask, got {type(other).__name__}")
        if self.shapes != other.shapes:
            raise ValueError(
                f"masks must have the same layers and shapes, got {self.shapes} and {other.shapes}"
            )
        return [(key, kept, other[key].to(kept.device)) for key, kept in self.items()]

    def __and__(self, other: Mask) -> Mask:
        return Mask({key: mine & theirs for key, mine, theirs in self._paired(other)})

    def __or__(self, other: Mask) -> Mask:
        return Mask({key: mine | theirs for key, mine, theirs in self._paired(other)})

    def distance(self, other: Mask) -> float:
        """Share of the weights on which two masks differ, in [0, 1] (normalised Hamming distance)."""
        return sum(int((mine != theirs).sum()) for _, mine, theirs in self._paired(other)) / self.total

    def covers(self, other: Mask) -> bool:
        """Whether everything that ``other`` keeps is kept here too: ``other`` is nested in this mask."""
        return not any(bool((theirs & ~mine).any()) for _, mine, theirs in self._paired(other))

    def shuffled(self, seed: int = 0) -> Mask:
        """Kept positions moved at random within each layer: the control that keeps layer densities alone.

        The positions in a layer follow from the seed and the layer's name, whatever the order of the layers.
        """
        moved = {}
        for key, kept in self.items():
            generator = seeded(step_seed(seed, 0, f"shuffled {key}"))
            order = torch.randperm(kept.numel(), generator=generator, device="cpu").to(kept.device)
            moved[key] = kept.flatten()[order].view(kept.shape)
        return Mask(moved)

    def to(self, device: str | torch.device) -> Mask:
        """This mask on another device."""
        return Mask({key: kept.to(device) for key, kept in self.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        if self.shapes != other.shapes:
            return False
        return all(torch.equal(kept, other[key].to(kept.device)) for key, kept in self.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        counts = f"{self.kept:,} of {self.total:,} weights kept"
        return f"Mask({len(self)} layers, {counts}, sparsity {self.sparsity:.4f})"
