"""Norms on weights folded in: a plain copy of a network, for what changes the shape of its weights."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ganprune.core.modes import eval_mode
from ganprune.masks.names import unwrap
from ganprune.masks.weights import weight_slots


def fold_norms(network: nn.Module) -> nn.Module:
    """A copy of a network whose spectral and weight norms are folded in: plain layers with the weights that the
    forward pass uses in evaluation mode.

    Every parametrisation is folded, and the older hooks of spectral and weight norm. The original is left as
    it was. (A parametrised layer's class is made for it and shared with its copies, so that taking the
    parametrisation off a copy breaks the original; here the layer is built anew instead.)
    """
    network = unwrap(network)
    memo: dict[int, Any] = {}
    for layer in network.modules():
        if id(layer) not in memo and (parametrize.is_parametrized(layer) or _norm_hooks(layer)):
            _plain(layer, memo)
    return copy.deepcopy(network, memo)


def _norm_hooks(layer: nn.Module) -> list[Any]:
    return [
        hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, (SpectralNorm, WeightNorm))
    ]


def _of_a_norm(hook: Any) -> bool:
    hook = getattr(hook, "hook", hook)
    name = getattr(hook, "__name__", type(hook).__name__).replace("_", "").lower()
    return "spectralnorm" in name or "weightnorm" in name


@torch.no_grad()
def _plain(layer: nn.Module, memo: dict[int, Any]) -> None:
    kind: Any = parametrize.type_before_parametrizations(layer)
    plain = memo[id(layer)] = kind.__new__(kind)
    folded: dict[str, tuple[Tensor, bool]] = {}
    raw: set[str] = set()
    with eval_mode(layer):
        if parametrize.is_parametrized(layer):
            for name, parts in layer.parametrizations.items():  # type: ignore[union-attr, operator]
                trained = any(p.requires_grad for p in parts.parameters())
                folded[name] = (getattr(layer, name).detach().clone(), trained)
        for hook in _norm_hooks(layer):
            options = {"do_power_iteration": False} if isinstance(hook, SpectralNorm) else {}
            weight = hook.compute_weight(layer, **options)
            parts = [f"{hook.name}_{end}" for end in ("orig", "g", "v", "u")]
            trained = any(layer._parameters[p].requires_grad for p in parts if p in layer._parameters)  # type: ignore[union-attr]
            folded[hook.name] = (weight.detach().clone(), trained)
            raw.update(parts)
    for key, value in vars(layer).items():
        if key in ("_parameters", "_buffers", "_modules"):
            kept = {
                k: v
                for k, v in value.items()
                if k not in raw and (key, k) != ("_modules", "parametrizations")
            }
            plain.__dict__[key] = copy.deepcopy(kept, memo)
        elif key.endswith("_hooks") and isinstance(value, dict):
            kept = {k: hook for k, hook in value.items() if not _of_a_norm(hook)}
            plain.__dict__[key] = copy.deepcopy(type(value)(kept), memo)
        elif key not in folded:
            plain.__dict__[key] = copy.deepcopy(value, memo)
    for name, (value, trained) in folded.items():
        plain._parameters[name] = nn.Parameter(value, requires_grad=trained)
    order = ["weight", "bias"]
    plain._parameters = {
        key: plain._parameters[key]
        for key in sorted(plain._parameters, key=lambda k: order.index(k) if k in order else len(order))
    }


@torch.no_grad()
def restore_spectral_norm(network: nn.Module) -> nn.Module:
    """A copy of a discriminator of this package with spectral norm on its weights, to train it further.

    The weights keep their directions, so each layer's output changes by the factor 1 / σ. Right after folding σ is
    1 up to the error of the power iteration; removing channels makes it smaller.

    Args:
        network: has a spec whose norm is "none".

    Raises:
        ValueError: if it has no such spec. (In other networks, put ``torch``'s own ``spectral_norm`` on layers.)
    """
    spec = getattr(network, "spec", None)
    if getattr(spec, "norm", None) != "none":
        raise ValueError(f"network must have a spec whose norm is 'none', got {spec!r}")
    normed = dataclasses.replace(spec, norm="spectral").build()  # type: ignore[type-var, union-attr]
    first = next(network.parameters())
    normed.to(first.device, first.dtype).train(network.training)
    raw = {k.replace("parametrizations.weight.original", "weight"): v for k, v in normed.state_dict().items()}
    for key, value in network.state_dict().items():
        raw[key].copy_(value)
    for slot in weight_slots(normed).values():
        norm: Any = next(slot.owner.children())
        left, _, right = torch.linalg.svd(slot.raw.movedim(norm.dim, 0).flatten(1), full_matrices=False)
        norm._u.copy_(left[:, 0])  # power iteration would need many steps from the vectors of another weight
        norm._v.copy_(right[0])
    return normed
