"""Exchange of masks with ``torch.nn.utils.prune``."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import prune as torch_prune

from ganprune.masks.apply import apply_mask, match_slots
from ganprune.masks.mask import Mask
from ganprune.masks.weights import PRUNABLE_LAYERS


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
    pairs = match_slots(model, mask)
    normed = [slot.key for slot, _ in pairs if slot.kind != "plain"]
    if normed:
        raise ValueError(
            f"torch.nn.utils.prune cannot mask weights under a parametrisation or norm: {', '.join(normed)}"
        )
    for slot, kept in pairs:
        torch_prune.custom_from_mask(slot.layer, "weight", kept)
