"""What pruning leaves out: parameters that belong to no prunable layer, and the warning that says so."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import nn

from ganprune.masks.names import canonical_name, unwrap
from ganprune.masks.weights import weight_slots

LARGE_PART = 0.1
"""Share of a network's parameters above which it is said that they are left out of pruning."""


def left_out(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with two or more dimensions that belong to no prunable layer, by canonical name.

    They stay dense at every sparsity: weights of layers of one's own (also of a convolution whose weight a norm of
    one's own has renamed), embeddings, learned constants, recurrent layers. Frozen ones are not listed, unless the
    whole network is frozen.
    """
    known = {id(p) for slot in weight_slots(network).values() for p in slot.layer.parameters()}
    all_frozen = not any(p.requires_grad for p in network.parameters())
    return {
        canonical_name(name, network): parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim >= 2
        and id(parameter) not in known
        and parameter.is_floating_point()
        and (parameter.requires_grad or all_frozen)
    }


def warn_of_left_out(network: nn.Module) -> None:
    """Warns if more than a tenth of a network's parameters can never be pruned, and names them with shapes."""
    others = left_out(network)
    total = sum(parameter.numel() for parameter in network.parameters())
    missed = sum(parameter.numel() for parameter in others.values())
    if missed <= LARGE_PART * total:
        return
    largest = sorted(others.items(), key=lambda item: -item[1].numel())
    listed = [f"{key} {tuple(parameter.shape)}" for key, parameter in largest[:8]]
    listed += [f"and {len(others) - 8} more"] if len(others) > 8 else []
    warnings.warn(
        f"{missed:,} of the {total:,} parameters of {type(unwrap(network)).__name__} belong to layers that are "
        f"not pruned, so a sparsity says nothing about them: {', '.join(listed)}. Prunable are the weights of "
        f"nn.Linear and the (transposed) convolutions of torch.nn{_remedy(network, others)}",
        UserWarning,
        stacklevel=3,
    )


def _remedy(network: nn.Module, others: Mapping[str, nn.Parameter]) -> str:
    """What makes the weights of layers of one's own prunable, in words; empty if there are none."""
    wanted = {id(parameter) for parameter in others.values()}
    calls = []
    for layer in network.modules():
        for name, parameter in layer._parameters.items():
            constant = (
                parameter is not None and parameter.ndim == 4 and parameter.shape[0] == 1
            )  # of StyleGANs
            if id(parameter) in wanted and not constant and not type(layer).__module__.startswith("torch."):
                calls.append(
                    f"gp.register_layer({type(layer).__name__}{'' if name == 'weight' else f', weight={name!r}'})"
                )
    listed = ", ".join(list(dict.fromkeys(calls))[:4])
    return f"; {listed} makes those of your own layers prunable" if listed else ""
