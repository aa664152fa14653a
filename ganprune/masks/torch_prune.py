"""Exchange of masks with ``torch.nn.utils.prune``."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import prune as torch_prune

from ganprune.masks.apply import apply_mask, match_slots
from ganprune.masks.mask import Mask
from ganprune.masks.names import canonical_name
from ganprune.masks.weights import PRUNABLE_LAYERS


def from_torch_prune(network: nn.Module, remove: bool = False) -> Mask:
    """The masks that ``torch.nn.utils.prune`` put on a network's weights, as one :class:`Mask`.

    Args:
        network: a module with at least one pruned convolution or linear layer. Layers without a mask on their
            weight are not in the result.
        remove: also make that pruning permanent, so that this package can take over from there. This covers
            every parameter that ``torch.nn.utils.prune`` has masked, pruned biases included: their zeros
            stay, but nothing keeps them zero when the network is trained, as a :class:`Mask` is about weights.

    Raises:
        ValueError: if no weight carries such a mask.
    """
    masked = [
        (module, key, buffer.removesuffix("_mask"))
        for key, module in network.named_modules()
        for buffer in module._buffers
        if buffer.endswith("_mask") and f"{buffer.removesuffix('_mask')}_orig" in module._parameters
    ]
    layers = {
        canonical_name(f"{key}.weight".lstrip("."), network): module.weight_mask != 0
        for module, key, name in masked
        if isinstance(module, PRUNABLE_LAYERS) and name == "weight"
    }
    if not layers:
        raise ValueError(
            f"network {type(network).__name__} carries no mask of torch.nn.utils.prune on a weight"
        )
    mask = Mask(layers)  # type: ignore[arg-type]
    if remove:
        for module, _, name in masked:
            torch_prune.remove(module, name)
        apply_mask(network, mask)
    return mask


def to_torch_prune(network: nn.Module, mask: Mask) -> None:
    """Hands a mask over to ``torch.nn.utils.prune``, which multiplies by it in each forward pass.

    Raises:
        ValueError: if the mask does not fit, or a layer is normalised spectrally or by weight norm, which
            torch's pruning cannot be combined with.
    """
    pairs = match_slots(network, mask)
    normed = [slot.key for slot, _ in pairs if slot.kind != "plain"]
    if normed:
        raise ValueError(
            f"torch.nn.utils.prune cannot mask weights under a parametrisation or norm: {', '.join(normed)}"
        )
    for slot, kept in pairs:
        torch_prune.custom_from_mask(slot.layer, "weight", kept)
