"""The weights that can be pruned: their names, their layers, and what the forward pass makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ganprune.core.modes import eval_mode
from ganprune.masks.names import canonical_name
from ganprune.masks.registered import RegisteredLayer, registration_of

PRUNABLE_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class WeightSlot:
    """Where one prunable weight lives.

    Attributes:
        key: canonical name, such as "layers.deconv1.weight".
        layer: the convolution or linear layer.
        owner: the module that holds the raw parameter: the layer, or its list of parametrisations.
        attribute: name of the raw parameter in the owner.
        kind: "plain", "parametrized", or "hook" for the older spectral and weight norm.
        own: the layer of one's own that was registered, and its registration; None for the others.
    """

    key: str
    layer: nn.Module
    owner: nn.Module
    attribute: str
    kind: str
    own: tuple[nn.Module, RegisteredLayer] | None = None

    @property
    def raw(self) -> nn.Parameter:
        """The parameter that the optimiser moves; zero exactly where the effective weight is."""
        found = self.owner._parameters[self.attribute]
        assert found is not None
        return found

    @property
    def output_dim(self) -> int:
        """The dimension of the weight that counts outputs: 1 in transposed convolutions (in, out, …), else
        0; layers of one's own say it."""
        if self.own is not None and not isinstance(self.layer, PRUNABLE_LAYERS):
            return self.own[1].output_dim
        return 1 if isinstance(self.layer, nn.modules.conv._ConvTransposeNd) else 0

    @property
    def outputs(self) -> int:
        """Number of output channels or features."""
        if not isinstance(self.layer, PRUNABLE_LAYERS):
            return int(self.raw.shape[self.output_dim])
        return int(getattr(self.layer, "out_channels", 0) or getattr(self.layer, "out_features", 0))

    @property
    def inputs(self) -> int:
        """Number of input channels or features."""
        groups = int(getattr(self.layer, "groups", 1)) if self.output_dim == 0 else 1
        return int(self.raw.shape[1 - self.output_dim]) * groups

    @torch.no_grad()
    def effective(self) -> Tensor:
        """What the forward pass uses: w / σ under spectral norm, g v / ‖v‖ under weight norm. Detached.

        Raises:
            ValueError: if a layer of one's own gives something of another shape.
        """
        if self.own is not None and self.own[1].effective is not None:
            layer, registered = self.own
            with eval_mode(layer):
                found: Any = self.own[1].effective(layer)
            if not isinstance(found, Tensor) or found.shape != self.raw.shape:
                given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"effective of {registered.kind.__name__} must give the weight in the shape of {self.key}, "
                    f"{tuple(self.raw.shape)}, got {given}"
                )
            return found.detach()
        if self.kind == "parametrized":
            with eval_mode(self.owner):  # in training mode spectral norm would move its vectors
                return self.owner().detach()
        if self.kind == "hook":
            hook = norm_hook(self.layer)
            if isinstance(hook, SpectralNorm):
                return hook.compute_weight(self.layer, do_power_iteration=False).detach()
            return hook.compute_weight(self.layer).detach()
        return self.raw.detach()

    def normed_groups(self, kept: Tensor) -> Tensor:
        """Whether a mask keeps anything in each group of weights that a norm divides by its length.

        Args:
            kept: the mask of this weight, in its shape.

        Returns:
            A flat bool tensor with one entry per group: per output under weight norm, one in all under spectral
            norm. Without a norm it has no entry. Where an entry is false, the forward pass would compute 0 / 0.
        """
        scale = None
        if self.kind == "parametrized":
            scale = self.owner._parameters.get("original0")
        elif self.kind == "hook":
            scale = self.layer._parameters.get("weight_g")
        if scale is not None:
            shared = [d for d in range(kept.ndim) if scale.ndim == 0 or scale.shape[d] == 1]
            return kept.any(dim=shared).flatten() if shared else kept.flatten()
        return kept.any().reshape(1) if spectral_parts(self) else kept.new_ones(0)


def weight_slots(network: nn.Module) -> dict[str, WeightSlot]:
    """The weights of all (transposed) convolutions, 1-D to 3-D, linear and registered layers, in module order.

    A weight that several layers share is listed once, under the first name. Biases, normalisation, embeddings
    and the packed projection of ``nn.MultiheadAttention`` are not among them.

    Raises:
        ValueError: if a layer has no weight yet, carries a mask of ``torch.nn.utils.prune``, has a
            parametrisation without one raw weight, or if two names become one.
    """
    slots: dict[str, WeightSlot] = {}
    seen: set[int] = set()
    for name, layer in network.named_modules():
        if (registered := registration_of(layer)) is not None:
            slot = _own_slot(name, layer, registered, network)
        elif isinstance(layer, PRUNABLE_LAYERS):
            slot = _slot(canonical_name(f"{name}.weight".lstrip("."), network), layer)
        else:
            continue
        if slot is None or id(slot.raw) in seen:
            continue
        seen.add(id(slot.raw))
        if slot.key in slots:
            raise ValueError(
                f"network has two weights whose canonical name is {slot.key!r}; rename one of the modules"
            )
        slots[slot.key] = slot
    return slots


def _own_slot(
    name: str, layer: nn.Module, registered: RegisteredLayer, network: nn.Module
) -> WeightSlot | None:
    """The weight of a registered layer."""
    inside, _, attribute = registered.weight.rpartition(".")
    key = canonical_name(f"{name}.{registered.weight}".lstrip("."), network)
    try:
        owner = layer.get_submodule(inside)
    except AttributeError:
        owner = None
    slot = None if owner is None else _slot(key, owner, attribute)
    if slot is None:
        raise ValueError(
            f"{name or 'the network'} ({type(layer).__name__}) has no parameter {registered.weight!r}, under which its "
            "class was registered; register_layer(cls, weight=...) names it"
        )
    return dataclasses.replace(slot, own=(layer, registered))


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
        if attribute in layer._parameters and norm_hook(layer) is not None:
            return WeightSlot(key, layer, layer, attribute, "hook")
    weight = layer._parameters.get(name)
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise ValueError(
            f"{key} is not initialised yet (a lazy layer); pass one batch through the model first"
        )
    return WeightSlot(key, layer, layer, name, "plain") if weight is not None else None


def slots_of_parameters(network: nn.Module, keys: Iterable[str]) -> dict[str, WeightSlot]:
    """Where the parameters with these canonical names live, of whatever module they are."""
    wanted = set(keys)
    names = {key.rpartition(".")[2] for key in wanted}
    found = {}
    for path, module in network.named_modules():
        for name in names:
            key = canonical_name(f"{path}.{name}".lstrip("."), network)
            if key in wanted and (slot := _slot(key, module, name)) is not None:
                found[key] = slot
    return found


def norm_hook(layer: nn.Module) -> Any:
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, (SpectralNorm, WeightNorm)) and hook.name == "weight":
            return hook
    return None


def spectral_parts(slot: WeightSlot) -> list[tuple[Tensor, Tensor, int]]:
    """The vectors u and v and the output dimension of each spectral norm of a weight."""
    if slot.kind == "parametrized":
        parts: list[Any] = [
            part for part in slot.owner.children() if hasattr(part, "_u") and hasattr(part, "_v")
        ]
        return [(part._u, part._v, part.dim) for part in parts]
    hook = norm_hook(slot.layer) if slot.kind == "hook" else None
    if isinstance(hook, SpectralNorm):
        return [(slot.layer.weight_u, slot.layer.weight_v, hook.dim)]  # type: ignore[list-item]
    return []


def protected_keys(keys: Iterable[str], protect: Iterable[str], network: nn.Module | None = None) -> set[str]:
    """The keys that are named, or lie below a module that is named, in ``protect``.

    Args:
        keys: canonical names of weights.
        protect: names of weights, layers or modules; a single string is one name.
        network: whose names they are, if the names may carry what a wrapper adds.

    Raises:
        ValueError: if a name matches none.
    """
    keys = list(keys)
    names = [canonical_name(name, network) for name in ([protect] if isinstance(protect, str) else protect)]
    matches = {name: {key for key in keys if key == name or key.startswith(f"{name}.")} for name in names}
    unknown = [name for name, found in matches.items() if not found]
    if unknown:
        raise ValueError(
            f"protect names {', '.join(unknown)}, which is no prunable layer; layers: {', '.join(keys)}"
        )
    return set().union(*matches.values())


def prunable_slots(network: nn.Module, protect: Iterable[str] = ()) -> dict[str, WeightSlot]:
    """The slots behind :func:`prunable_weights`."""
    slots = weight_slots(network)
    protected = protected_keys(slots, protect, network)
    all_frozen = not any(p.requires_grad for p in network.parameters())
    found = {
        key: slot
        for key, slot in slots.items()
        if key not in protected
        and slot.raw.is_floating_point()
        and slot.raw.numel() > 0
        and (slot.raw.requires_grad or all_frozen)
    }
    if not found:
        reason = f" ({len(slots)} such weights are frozen, protected or empty)" if slots else ""
        raise ValueError(
            f"network {type(network).__name__} has no prunable weight{reason}; "
            "prunable are the weights of Conv, ConvTranspose and Linear layers that require a gradient, and of layers "
            "of your own that gp.register_layer names"
        )
    return found


def prunable_weights(network: nn.Module, protect: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """The weights that pruning may set to zero, by canonical name, in module order.

    These are the weights of convolutions, transposed convolutions and linear layers; under spectral or weight
    norm of PyTorch the raw parameter. Shared weights count once. Frozen weights (``requires_grad`` false) are
    left out, unless the whole network is frozen, as an EMA copy is: then its freezing says nothing about
    single layers. Weights without entries and weights that are no floating-point numbers are left out too.
    Layers of one's own that keep a weight beside ``nn.Linear`` and the convolutions (equalised or modulated
    layers, for instance) are prunable once :func:`register_layer` names their class; :func:`left_out` lists what is
    not.

    Args:
        network: any module.
        protect: names of weights, layers or whole submodules to leave out.

    Raises:
        ValueError: if no weight is prunable, or ``protect`` names something that is not there.
    """
    return {key: slot.raw for key, slot in prunable_slots(network, protect).items()}


def effective_weights(network: nn.Module, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """What the forward pass uses of :func:`prunable_weights`, detached: w / σ under spectral norm.

    Raw magnitudes under a norm have an arbitrary scale per layer, so scores look at these. That holds for
    PyTorch's own norms and parametrisations, and for registered layers that say it (:func:`register_layer`). A norm
    or multiplier that another layer of one's own applies in its ``forward`` cannot be seen: there the raw weight is
    taken. No state changes.
    """
    return {key: slot.effective() for key, slot in prunable_slots(network, protect).items()}
