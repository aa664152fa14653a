"""Masks: which weights can be pruned, which are kept, and how zeros stay zero while training goes on.

A pruned weight *is* zero. Nothing is recomputed in the forward pass, so a masked network is an ordinary
network: it can be copied, compiled, normalised spectrally and saved. What keeps the zeros is a hook on the
optimiser (:func:`keep_mask`). For element-wise optimisers (SGD, RMSprop, Adam, AdamW) that is projected
descent: a step of the dense method followed by the projection onto the networks with this mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim import Optimizer

from ganprune.checks import check_choice, check_number
from ganprune.runtime import eval_mode

PRUNABLE_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
POWER_ITERATIONS = 20
GRADIENT_MODES = ("masked", "dense")
_INTEGER_OF_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MaskError(RuntimeError):
    """A mask does not hold, or can no longer be kept; the message says where and why."""


def check_sparsity(sparsity: Any, name: str = "sparsity") -> float:
    """The sparsity as a float.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not in [0, 1); NaN is not.
    """
    return check_number(name, sparsity, "[0, 1)")


# --- Which weights --------------------------------------------------------------------------------


def canonical_name(name: str) -> str:
    """The name of a weight without what wrappers add to it.

    Gone are a leading ``module.`` (data parallelism, averaged models), ``_orig_mod.`` (compilation) and what
    parametrisations call the raw tensor: ``parametrizations.weight.original`` (spectral norm), ``…original1``
    (weight norm), ``weight_orig`` and ``weight_v`` (the older hooks). So one mask fits a network however it
    is wrapped.
    """
    name = ".".join(part for part in name.split(".") if part != "_orig_mod")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    name = re.sub(r"(^|\.)parametrizations\.(\w+)\.original[01]?$", r"\1\2", name)
    return re.sub(r"(^|\.)weight_(?:orig|v)$", r"\1weight", name)


@dataclass(frozen=True)
class WeightSlot:
    """Where one prunable weight lives.

    Attributes:
        key: canonical name, such as "layers.deconv1.weight".
        layer: the convolution or linear layer.
        owner: the module that holds the raw parameter: the layer, or its list of parametrisations.
        attribute: name of the raw parameter in the owner.
        kind: "plain", "parametrized", or "hook" for the older spectral and weight norm.
    """

    key: str
    layer: nn.Module
    owner: nn.Module
    attribute: str
    kind: str

    @property
    def name(self) -> str:
        """Canonical name of the layer, such as "layers.deconv1"; empty if the network is one layer."""
        return self.key.removesuffix("weight").removesuffix(".")

    @property
    def raw(self) -> nn.Parameter:
        """The parameter that the optimiser moves; zero exactly where the effective weight is."""
        found = self.owner._parameters[self.attribute]
        assert found is not None
        return found

    @property
    def output_dim(self) -> int:
        """The dimension of the weight that counts outputs: 1 in transposed convolutions (in, out, …), else
        0."""
        return 1 if isinstance(self.layer, nn.modules.conv._ConvTransposeNd) else 0

    @property
    def outputs(self) -> int:
        """Number of output channels or features."""
        return int(getattr(self.layer, "out_channels", 0) or getattr(self.layer, "out_features", 0))

    @torch.no_grad()
    def effective(self) -> Tensor:
        """What the forward pass uses: w / σ under spectral norm, g v / ‖v‖ under weight norm. Detached."""
        if self.kind == "parametrized":
            with eval_mode(self.owner):  # in training mode spectral norm would move its vectors
                return self.owner().detach()
        if self.kind == "hook":
            hook = _norm_hook(self.layer)
            if isinstance(hook, SpectralNorm):
                return hook.compute_weight(self.layer, do_power_iteration=False).detach()
            return hook.compute_weight(self.layer).detach()
        return self.raw.detach()

    def normed_groups(self, kept: Tensor) -> Tensor:
        """Whether each group of weights with a norm of its own keeps anything; empty without a norm."""
        scale = None
        if self.kind == "parametrized":
            scale = self.owner._parameters.get("original0")
        elif self.kind == "hook":
            scale = self.layer._parameters.get("weight_g")
        if scale is not None:
            shared = [d for d in range(kept.ndim) if scale.ndim == 0 or scale.shape[d] == 1]
            return kept.any(dim=shared).flatten() if shared else kept.flatten()
        return kept.any().reshape(1) if _spectral_parts(self) else kept.new_ones(0)


def weight_slots(model: nn.Module) -> dict[str, WeightSlot]:
    """The weights of all (transposed) convolutions, 1-D to 3-D, and linear layers, in module order.

    A weight that several layers share is listed once, under the first name. Biases, normalisation, embeddings
    and the packed projection of ``nn.MultiheadAttention`` are not among them.

    Raises:
        ValueError: if a layer has no weight yet, carries a mask of ``torch.nn.utils.prune``, has a
            parametrisation without one raw weight, or if two names become one.
    """
    slots: dict[str, WeightSlot] = {}
    seen: set[int] = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, PRUNABLE_LAYERS):
            continue
        slot = _slot(canonical_name(f"{name}.weight".lstrip(".")), layer)
        if slot is None or id(slot.raw) in seen:
            continue
        seen.add(id(slot.raw))
        if slot.key in slots:
            raise ValueError(
                f"model has two weights whose canonical name is {slot.key!r}; rename one of the modules"
            )
        slots[slot.key] = slot
    return slots


def _slot(key: str, layer: nn.Module, name: str = "weight") -> WeightSlot | None:
    if parametrize.is_parametrized(layer, name):
        owner: nn.Module = layer.parametrizations[name]  # type: ignore[index, union-attr, assignment]
        for attribute in ("original", "original1"):
            if attribute in owner._parameters:
                return WeightSlot(key, layer, owner, attribute, "parametrized")
        raise ValueError(f"{key} has a parametrisation without one raw weight; remove it before pruning")
    if "weight_mask" in layer._buffers:
        raise ValueError(
            f"{key} carries a mask of torch.nn.utils.prune; "
            "take it over with from_torch_prune(model, remove=True)"
        )
    for attribute in (f"{name}_orig", f"{name}_v"):
        if attribute in layer._parameters and _norm_hook(layer) is not None:
            return WeightSlot(key, layer, layer, attribute, "hook")
    weight = layer._parameters.get(name)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(
            f"{key} is not initialised yet (a lazy layer); pass one batch through the model first"
        )
    return WeightSlot(key, layer, layer, name, "plain") if weight is not None else None


def _slots_of(model: nn.Module, keys: Iterable[str]) -> dict[str, WeightSlot]:
    """Where the parameters with these canonical names live, of whatever module they are."""
    wanted = set(keys)
    names = {key.rpartition(".")[2] for key in wanted}
    found = {}
    for path, module in model.named_modules():
        for name in names:
            key = canonical_name(f"{path}.{name}".lstrip("."))
            if key in wanted and (slot := _slot(key, module, name)) is not None:
                found[key] = slot
    return found


def _norm_hook(layer: nn.Module) -> Any:
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, (SpectralNorm, WeightNorm)) and hook.name == "weight":
            return hook
    return None


def protected_keys(keys: Iterable[str], protect: Iterable[str]) -> set[str]:
    """The keys that are named, or lie below a module that is named, in ``protect``.

    Raises:
        ValueError: if a name matches none.
    """
    keys = list(keys)
    names = [canonical_name(name) for name in ([protect] if isinstance(protect, str) else protect)]
    matches = {name: {key for key in keys if key == name or key.startswith(f"{name}.")} for name in names}
    unknown = [name for name, found in matches.items() if not found]
    if unknown:
        raise ValueError(
            f"protect names {', '.join(unknown)}, which is no prunable layer; layers: {', '.join(keys)}"
        )
    return set().union(*matches.values())


def prunable_slots(model: nn.Module, protect: Iterable[str] = ()) -> dict[str, WeightSlot]:
    """The slots behind :func:`prunable_weights`."""
    slots = weight_slots(model)
    protected = protected_keys(slots, protect)
    frozen: set[str] = set()
    if any(p.requires_grad for p in model.parameters()):
        frozen = {key for key, slot in slots.items() if not slot.raw.requires_grad}
    found = {key: slot for key, slot in slots.items() if key not in protected | frozen}
    if not found:
        reason = f" ({len(slots)} such weights are frozen or protected)" if slots else ""
        raise ValueError(
            f"model {type(model).__name__} has no prunable weight{reason}; "
            "prunable are the weights of Conv, ConvTranspose and Linear layers that require a gradient"
        )
    return found


def prunable_weights(model: nn.Module, protect: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """The weights that pruning may set to zero, by canonical name, in module order.

    These are the weights of convolutions, transposed convolutions and linear layers; under spectral or weight
    norm the raw parameter. Shared weights count once. Frozen weights (``requires_grad`` false) are left out,
    unless the whole network is frozen, as an EMA copy is: then its freezing says nothing about single layers.

    Args:
        model: any module.
        protect: names of weights, layers or whole submodules to leave out.

    Raises:
        ValueError: if no weight is prunable, or ``protect`` names something that is not there.
    """
    return {key: slot.raw for key, slot in prunable_slots(model, protect).items()}


def effective_weights(model: nn.Module, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """What the forward pass uses of :func:`prunable_weights`, detached: w / σ under spectral norm.

    Raw magnitudes under a norm have an arbitrary scale per layer, so scores look at these. No state changes.
    """
    return {key: slot.effective() for key, slot in prunable_slots(model, protect).items()}


# --- Mask -----------------------------------------------------------------------------------------


class Mask(Mapping[str, Tensor]):
    """A checked, immutable mapping from canonical weight names to bool tensors; True means kept.

    A mask belongs to one network. Layers that it does not mention are not prunable and do not count.

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
    def dense(cls, model: nn.Module, protect: Iterable[str] = ()) -> Mask:
        """The mask that keeps every prunable weight."""
        weights = prunable_weights(model, protect)
        return cls({key: torch.ones_like(weight, dtype=torch.bool) for key, weight in weights.items()})

    @classmethod
    def nonzero(cls, model: nn.Module, protect: Iterable[str] = ()) -> Mask:
        """The mask that keeps the weights which are not zero now."""
        return cls({key: weight.detach() != 0 for key, weight in prunable_weights(model, protect).items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._layers[name]

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
        mine, theirs = ({key: tuple(kept.shape) for key, kept in mask.items()} for mask in (self, other))
        if mine != theirs:
            raise ValueError(f"masks must have the same layers and shapes, got {mine} and {theirs}")
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
        """Kept positions moved at random within each layer: the control that keeps layer densities alone."""
        generator = torch.Generator().manual_seed(seed)
        moved = {}
        for key, kept in self.items():
            order = torch.randperm(kept.numel(), generator=generator).to(kept.device)
            moved[key] = kept.flatten()[order].view(kept.shape)
        return Mask(moved)

    def to(self, device: str | torch.device) -> Mask:
        """This mask on another device."""
        return Mask({key: kept.to(device) for key, kept in self.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        if {k: m.shape for k, m in self.items()} != {k: m.shape for k, m in other.items()}:
            return False
        return all(torch.equal(kept, other[key].to(kept.device)) for key, kept in self.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        counts = f"{self.kept:,} of {self.total:,} weights kept"
        return f"Mask({len(self)} layers, {counts}, sparsity {self.sparsity:.4f})"


# --- Apply and check ------------------------------------------------------------------------------


_Pairs = list[tuple[WeightSlot, Tensor]]


def _matched(
    model: nn.Module, mask: Mapping[str, Tensor], role: str = "model", others: Mask | None = None
) -> _Pairs:
    """Pairs of weight and mask, and then of other parameters and theirs.

    Raises:
        TypeError: if the mask is not a :class:`Mask`.
        ValueError: if a layer of the mask is missing or has another shape; all are listed.
    """
    for name, one in (("mask", mask), ("others", others)):
        if not isinstance(one, Mask) and (one is not None or name == "mask"):
            raise TypeError(f"{name} must be a Mask, got {type(one).__name__}")
    wanted: dict[str, Tensor] = {**mask, **(others or {})}
    slots = weight_slots(model)
    if others is not None:
        slots = {**slots, **_slots_of(model, others)}
    problems = [f"{key} is missing" for key in wanted if key not in slots]
    problems += [
        f"{key} has shape {tuple(slots[key].raw.shape)}, its mask {tuple(kept.shape)}"
        for key, kept in wanted.items()
        if key in slots and slots[key].raw.shape != kept.shape
    ]
    if problems:
        raise ValueError(f"mask does not fit the {role}: " + "; ".join(problems))
    return [(slots[key], kept.to(slots[key].raw.device)) for key, kept in wanted.items()]


def check_fit(model: nn.Module, mask: Mask) -> None:
    """Does nothing if the model has every layer of the mask, in its shape.

    Raises:
        TypeError: if ``mask`` is not a :class:`Mask`.
        ValueError: if a layer is missing or has another shape; all are listed.
    """
    _matched(model, mask)


def _refuse(pairs: _Pairs, flags: list[Tensor], message: str) -> None:
    """Raises for the layers whose flag is true; one wait for the device in all."""
    bad = torch.stack([flag.cpu() for flag in flags]).tolist() if flags else []
    names = [slot.key for (slot, _), is_bad in zip(pairs, bad, strict=True) if is_bad]
    if names:
        raise ValueError(f"{message}: {', '.join(names)}")


@torch.no_grad()
def apply_mask(
    model: nn.Module, mask: Mask, ema: nn.Module | None = None, others: Mask | None = None
) -> None:
    """Sets the pruned weights to (positive) zero in the model and in its EMA copy.

    Left alone, an EMA copy has no sparsity at all a thousand steps later. Under spectral norm the power
    iteration is run again, because its vectors belong to the weights of before. All is checked before
    anything is written.

    Args:
        model: changed in place.
        mask: as :func:`prunable_weights` names the layers; the model may be frozen.
        ema: a copy of the model that shares the mask, or None.
        others: entries of other parameters that become zero too, as for :func:`keep_mask`.

    Raises:
        TypeError: if ``mask`` or ``others`` is not a :class:`Mask`.
        ValueError: if the mask does not fit, a weight is NaN or infinite, or the mask empties something that
            a spectral or weight norm divides by its norm.
    """
    networks = {"model": model} | ({"EMA copy": ema} if ema is not None else {})
    matched = {role: _matched(network, mask, role, others) for role, network in networks.items()}
    for role, pairs in matched.items():
        not_finite = [~torch.isfinite(slot.raw).all() for slot, _ in pairs]
        _refuse(pairs, not_finite, f"weights of the {role} must be finite, got NaN or infinity in")
        emptied = [~slot.normed_groups(kept).all() for slot, kept in pairs]
        _refuse(pairs, emptied, "mask empties what a norm divides by its length, which would be 0 / 0, in")
        changed = [torch.tensor(not _keeps_zeros(slot, kept)) for slot, kept in pairs]
        _refuse(pairs, changed, "a parametrisation (to be removed first) does not keep zeros in")
    for slot, kept in (pair for pairs in matched.values() for pair in pairs):
        raw = slot.raw.detach()
        stale = bool(_spectral_parts(slot)) and bool((raw[~kept] != 0).any())
        raw.masked_fill_(~kept, 0.0)
        if stale:  # where the mask held already the vectors stay, so that resuming is bit-identical
            _refresh_spectral_norm(slot)


def _keeps_zeros(slot: WeightSlot, kept: Tensor) -> bool:
    """Whether the effective weight is zero where the raw one is; tried out under parametrisations unknown
    here."""
    parts = list(slot.owner.children()) if slot.kind == "parametrized" else []
    if len(parts) == len(_spectral_parts(slot)) or slot.attribute == "original1":
        return True
    weight = slot.raw.detach()
    before = weight.clone()
    weight.masked_fill_(~kept, 0.0)
    result = bool((slot.effective()[~kept] == 0).all())
    weight.copy_(before)
    return result


def _spectral_parts(slot: WeightSlot) -> list[tuple[Tensor, Tensor, int]]:
    """The vectors u and v and the output dimension of each spectral norm of a weight."""
    if slot.kind == "parametrized":
        parts: list[Any] = [
            part for part in slot.owner.children() if hasattr(part, "_u") and hasattr(part, "_v")
        ]
        return [(part._u, part._v, part.dim) for part in parts]
    hook = _norm_hook(slot.layer) if slot.kind == "hook" else None
    if isinstance(hook, SpectralNorm):
        return [(slot.layer.weight_u, slot.layer.weight_v, hook.dim)]  # type: ignore[list-item]
    return []


@torch.no_grad()
def _refresh_spectral_norm(slot: WeightSlot) -> None:
    """Power iterations until u and v are the leading singular vectors of the weight as it is now."""
    for u, v, dim in _spectral_parts(slot):
        matrix = slot.raw.detach().movedim(dim, 0).flatten(1)
        left = u.clone()
        if (matrix.T @ left).norm() <= 1e-6 * matrix.norm():  # the old vector sees only what has been pruned
            left = matrix @ matrix[matrix.norm(dim=1).argmax()]
        for _ in range(POWER_ITERATIONS):
            right = nn.functional.normalize(matrix.T @ left, dim=0)
            left = nn.functional.normalize(matrix @ right, dim=0)
        u.copy_(left)
        v.copy_(right)


def check_mask(model: nn.Module, mask: Mask) -> None:
    """Does nothing if every pruned weight is zero and every weight is finite.

    Saving, exporting and evaluating a masked network call it, so that no number is reported for a mask that
    was lost.

    Raises:
        MaskError: if a pruned weight is not zero, or a weight is NaN or infinite.
        ValueError: if the mask does not fit the model.
    """
    _check(_matched(model, mask))


@torch.no_grad()
def _check(pairs: _Pairs) -> None:
    counts = torch.stack(
        [
            torch.stack([((slot.raw != 0) & ~kept).sum(), (~torch.isfinite(slot.raw)).sum()]).cpu()
            for slot, kept in pairs
        ]
    ).tolist()
    for (slot, _), (alive, not_finite) in zip(pairs, counts, strict=True):
        if not_finite:
            raise MaskError(f"{slot.key} has {not_finite} weights that are NaN or infinite")
        if alive:
            raise MaskError(
                f"{slot.key} has {alive} non-zero weights under its mask; "
                "keep_mask holds a mask while an optimiser steps"
            )


# --- Keep -----------------------------------------------------------------------------------------


def _bits(kept: Tensor, weight: Tensor) -> Tensor:
    """The mask as integers of the weight's width and memory layout: all bits where kept, none where pruned.

    ``weight & bits`` is one fast pass and gives +0.0, where a product would give −0.0 and keep a NaN.
    """
    bits = torch.zeros_like(weight.detach().view(_INTEGER_OF_WIDTH[weight.element_size()]))
    return bits.masked_fill_(kept.to(weight.device), -1)


def _and_(tensor: Tensor, bits: Tensor) -> None:
    if tensor.element_size() == bits.element_size():
        tensor.detach().view(bits.dtype).bitwise_and_(bits)
    else:  # a gradient in another precision than its weight
        tensor.detach().masked_fill_(bits == 0, 0.0)


class MaskKeeper:
    """Keeps a mask while an optimiser steps; made by :func:`keep_mask`.

    As a context manager it checks and then removes itself at the end of the block.

    Attributes:
        mask: the mask in force.
        others: what is held beside the mask: entries of parameters that are no prunable weights, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask,
        optimizer: Optimizer,
        ema: nn.Module | None,
        gradients: str,
        others: Mask | None = None,
    ) -> None:
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.gradients = gradients
        apply_mask(model, mask, ema, others)
        self.mask, self.others = mask, others
        pairs = _matched(model, mask, others=others)  # those of the mask come first
        self._slots = [slot for slot, _ in pairs]
        self._weights = [slot.raw for slot in self._slots]
        self._working = [_bits(kept, slot.raw) for slot, kept in pairs]
        self._handles = [optimizer.register_step_post_hook(self._after_step)]
        for index, weight in enumerate(self._weights):
            self._handles.append(self._watch_gradient(index, weight))
        self._mask_gradients()

    @property
    def gradients(self) -> str:
        """Whether gradients are zero under the mask ("masked") or as autograd made them ("dense").

        May be set at any time: RigL wants "dense" at its update steps.
        """
        return self._gradients

    @gradients.setter
    def gradients(self, mode: str) -> None:
        check_choice("gradients", mode, GRADIENT_MODES)
        self._gradients = mode

    def _watch_gradient(self, index: int, weight: nn.Parameter) -> Any:
        def after_accumulation(parameter: Tensor) -> None:
            if self._gradients == "masked" and parameter.grad is not None:
                _and_(parameter.grad, self._current_bits(index))

        frozen = not weight.requires_grad
        weight.requires_grad_(True)  # a frozen weight takes no hook, and it may be thawed later
        handle = weight.register_post_accumulate_grad_hook(after_accumulation)
        weight.requires_grad_(not frozen)
        return handle

    def _current_bits(self, index: int) -> Tensor:
        """The working copy of a mask; made anew if the model has changed device, precision or layout."""
        bits, weight = self._working[index], self._weights[index]
        if (
            bits.device != weight.device
            or bits.element_size() != weight.element_size()
            or bits.stride() != weight.stride()
        ):
            kept = {**self.mask, **(self.others or {})}[self._slots[index].key]
            bits = self._working[index] = _bits(kept, weight)
        return bits

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for index, (slot, weight) in enumerate(zip(self._slots, self._weights, strict=True)):
            if slot.owner._parameters.get(slot.attribute) is not weight:
                raise MaskError(self._replaced(slot.key))
            _and_(weight, self._current_bits(index))

    def _mask_gradients(self) -> None:
        if self._gradients == "masked":
            for index, weight in enumerate(self._weights):
                if weight.grad is not None:
                    _and_(weight.grad, self._current_bits(index))

    @torch.no_grad()
    def update(self, mask: Mask) -> None:
        """Puts another mask in force, in place: model, EMA copy, working copies, gradients and moments.

        Weights that come back start at zero with moments of zero.

        Raises:
            ValueError: if the layers or shapes differ from those of the mask in force, or as
                :func:`apply_mask` does.
        """
        changes = self.mask._paired(mask)
        apply_mask(self.model, mask, self.ema)
        for index, (_, old, new) in enumerate(changes):
            weight = self._weights[index]
            regrown = (new & ~old).to(weight.device)
            for entry in self.optimizer.state.get(weight, {}).values():
                if isinstance(entry, Tensor) and entry.shape == weight.shape:
                    entry.masked_fill_(regrown, 0.0)
            self._current_bits(index).copy_(_bits(new, weight))
        self.mask = mask
        self._mask_gradients()

    def check(self, optimizer: Optimizer | None = None) -> None:
        """Does nothing if the mask holds and will hold after the next step.

        Args:
            optimizer: the optimiser that is really used, if that may be another than the one given at first.

        Raises:
            MaskError: if the keeper was removed, the hook is gone from the optimiser (as from every copied or
                unpickled one), the model's parameters were replaced (``load_state_dict(assign=True)``,
                shrinking), or a pruned weight is not zero.
        """
        optimizer = optimizer or self.optimizer
        if not self._handles:
            raise MaskError("this keeper was removed; call keep_mask again")
        if self._after_step not in getattr(optimizer, "_optimizer_step_post_hooks", {}).values():
            raise MaskError(
                "the optimiser has lost the hook that keeps the mask (a copied or unpickled one has none); "
                "call keep_mask again with the optimiser in use"
            )
        current = weight_slots(self.model) | _slots_of(self.model, self.others or ())
        for slot, weight in zip(self._slots, self._weights, strict=True):
            if slot.key not in current or current[slot.key].raw is not weight:
                raise MaskError(self._replaced(slot.key))
        for network in (self.model, self.ema):
            if network is not None:
                _check(_matched(network, self.mask, others=self.others))

    @staticmethod
    def _replaced(key: str) -> str:
        return (
            f"the parameter {key} was replaced after keep_mask (load_state_dict(assign=True), shrinking and "
            "new parametrisations do that); make the optimiser and the keeper again"
        )

    def remove(self) -> None:
        """Takes the hooks away; the zeros stay until the next optimiser step. May be called again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> MaskKeeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None and self._handles:
                self.check()
        finally:
            self.remove()

    def __repr__(self) -> str:
        return f"MaskKeeper({self.mask!r}, {type(self.optimizer).__name__}, gradients={self.gradients!r})"


def keep_mask(
    model: nn.Module,
    mask: Mask,
    optimizer: Optimizer,
    ema: nn.Module | None = None,
    gradients: str = "masked",
    others: Mask | None = None,
) -> MaskKeeper:
    """Applies a mask and keeps it: after every step of the optimiser the pruned weights are zero again.

    One line in a training loop of one's own::

        with keep_mask(generator, mask, optimizer):
            ...  # zero_grad, backward, step as ever

    For element-wise optimisers this is exact projected descent. Optimisers that mix the entries of a weight
    (LAMB, Muon, Adafactor) keep the mask too, but their step depends on the zeros: LAMB's trust ratio and
    Adafactor's row and column means see them, and Muon's orthogonalisation is not undone for the entries that
    are kept. Weight clipping and other changes outside the optimiser must keep zeros by themselves (clamping
    around zero does).

    Args:
        model: the network; its weights change at once as in :func:`apply_mask`.
        mask: what to keep.
        optimizer: moves the model's parameters.
        ema: an exponential moving average of the model; masked now and at each :meth:`MaskKeeper.update`.
        gradients: "masked" sets gradients to zero under the mask as they are accumulated, so that clipping by
            norm counts kept weights alone; "dense" leaves them, for methods that regrow weights by gradient.
        others: held in the same way, by parameter name, but no part of the mask and of its sparsity: biases,
            scales and whatever else is no prunable weight; see
            :func:`~ganprune.pruning.channels.surgery.keep_channels`.

    Returns:
        A handle, which is also a context manager: ``update``, ``check``, ``remove``.

    Raises:
        TypeError: if the optimiser is none of torch's, or ``mask`` or ``others`` is no :class:`Mask`.
        ValueError: if the optimiser is LBFGS or does not hold the masked weights, ``gradients`` is unknown,
            the mask does not fit, or ``others`` names a weight of the mask.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer must not be LBFGS: it evaluates the loss between its own steps, where no mask holds"
        )
    check_choice("gradients", gradients, GRADIENT_MODES)
    both = sorted(set(others or ()) & set(mask))
    if both:
        raise ValueError(f"others must name what the mask does not, got {', '.join(both)}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [
        slot.key
        for slot, _ in _matched(model, mask, others=others)
        if slot.raw.requires_grad and id(slot.raw) not in held
    ]
    if missing:
        raise ValueError(
            f"optimizer does not hold {', '.join(missing)}; make it from the model's present parameters"
        )
    return MaskKeeper(model, mask, optimizer, ema, gradients, others)


# --- Exchange -------------------------------------------------------------------------------------


def _torch_pruned(model: nn.Module) -> dict[str, nn.Module]:
    layers = {f"{name}.weight".lstrip("."): layer for name, layer in model.named_modules()}
    return {k: m for k, m in layers.items() if isinstance(m, PRUNABLE_LAYERS) and "weight_mask" in m._buffers}


def from_torch_prune(model: nn.Module, remove: bool = False) -> Mask:
    """The masks that ``torch.nn.utils.prune`` put on a model's weights, as one :class:`Mask`.

    Args:
        model: a module with at least one pruned convolution or linear layer. Layers without a mask are not in
            the result.
        remove: also make that pruning permanent, so that this package can take over from there.

    Raises:
        ValueError: if no weight carries such a mask.
    """
    pruned = _torch_pruned(model)
    if not pruned:
        raise ValueError(f"model {type(model).__name__} carries no mask of torch.nn.utils.prune on a weight")
    mask = Mask({key: layer.weight_mask != 0 for key, layer in pruned.items()})  # type: ignore[misc]
    if remove:
        for layer in pruned.values():
            torch_prune.remove(layer, "weight")
        apply_mask(model, mask)
    return mask


def to_torch_prune(model: nn.Module, mask: Mask) -> None:
    """Hands a mask over to ``torch.nn.utils.prune``, which multiplies by it in each forward pass.

    Raises:
        ValueError: if the mask does not fit, or a layer is normalised spectrally or by weight norm, which
            torch's pruning cannot be combined with.
    """
    pairs = _matched(model, mask)
    normed = [slot.key for slot, _ in pairs if slot.kind != "plain"]
    if normed:
        raise ValueError(
            f"torch.nn.utils.prune cannot mask weights under a parametrisation or norm: {', '.join(normed)}"
        )
    for slot, kept in pairs:
        torch_prune.custom_from_mask(slot.layer, "weight", kept)


def pruned_count(sparsity: float, total: int) -> int:
    """How many of ``total`` weights a sparsity in [0, 1) prunes: the nearest integer, but never all."""
    return min(round(sparsity * total), max(total - 1, 0))
