"""How important each coupled channel of a network is; the least important are to be removed.

Write S for the weights that leave with a channel: the filters that make it in every coupled layer, and the
slices that read it. Norms on weights are folded in first, so that w is what the forward pass uses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ganprune.channels.analysis import Analysis, analyse
from ganprune.channels.groups import ChannelGroup, Member
from ganprune.channels.parts import (
    ChannelError,
    connection_table,
    drop_picker,
    list_batches,
    named_parts,
    named_slots,
)
from ganprune.core.checks import check_choice
from ganprune.core.random import seeded
from ganprune.masks.weights import PRUNABLE_LAYERS, protected_keys, weight_slots
from ganprune.scores.activation import channel_scores
from ganprune.scores.gradient import losses_of
from ganprune.scores.registry import undisturbed

LossFn = Callable[[nn.Module], Iterable[Tensor] | Tensor]

IMPORTANCES = ("l1", "l2", "bn", "taylor", "activation", "apoz", "random")

COMPARABLE = ("bn", "taylor", "random")
"""Importances whose values mean the same in every group; the others depend on a layer's size and scale."""


def channel_importance(
    network: nn.Module,
    name: str = "l1",
    loss_fn: LossFn | None = None,
    inputs: Any = None,
    *,
    protect: Iterable[str] = (),
    seed: int = 0,
) -> dict[str, Tensor]:
    """One number per coupled channel of each prunable group; the smallest are to be removed.

    Args:
        network: left as it was.
        name: "l1": Σ ``|w|`` over S (Li et al. 2017, "Pruning filters for efficient ConvNets", extended to
            coupled layers as by Fang et al. 2023). "l2": the root of Σ w² over S. "bn": ``|γ|`` of the batch
            norms in the group (Liu et al. 2017, "Learning efficient convolutional networks through network
            slimming"). "taylor": Σ (Σ g w)², the outer sum over batches, the inner over the slices that read
            the channel; that product is the first-order change of the loss when the channel's output becomes
            zero (Molchanov et al. 2019, "Importance estimation for neural network pruning", who put a gate
            behind the channel); where no layer reads it, the filters count instead. "activation": the mean
            ``|a|``, "apoz": the share of positive activations, summed over the channels that are coupled; see
            :func:`ganprune.scores.activation.channel_scores`. "random": uniform in [0, 1), the control.
        loss_fn: for "taylor", a closure that yields one scalar loss per batch, such as ``generator_loss(gan)``,
            or returns a single one.
        inputs: for "activation" and "apoz" all batches count; for the shapes, as in :func:`channel_groups`.
        protect: layers whose outputs stay.
        seed: for "random".

    Returns:
        Group name → tensor of shape (channels,), on the network's device.

    Raises:
        ChannelError: if no group is prunable, or one has no batch norm for "bn".
        ValueError: if the name is unknown, ``loss_fn`` is missing or yields no scalars, a number is NaN or
            infinite, or as in :func:`channel_groups`.
    """
    check_importance(name, loss_fn)
    inputs = list_batches(inputs)
    analysis = analyse(network, inputs)
    return importance_of(analysis, name, inputs, loss_fn, protect, seed)


def check_importance(name: Any, loss_fn: Any) -> None:
    """Does nothing if there is such an importance and it has what it needs.

    Raises:
        ValueError: otherwise.
    """
    check_choice("importance", name, IMPORTANCES)
    if name == "taylor" and loss_fn is None:
        raise ValueError("importance 'taylor' needs loss_fn, such as generator_loss(gan)")


def prunable_groups(analysis: Analysis, protect: Iterable[str] = ()) -> dict[str, ChannelGroup]:
    """The groups that can be pruned and are not protected.

    Raises:
        ChannelError: if there is none.
        ValueError: if ``protect`` names no layer.
    """
    protected_weights = protected_keys(weight_slots(analysis.plain), protect)
    slots = named_slots(analysis.plain)
    protected = {name for name, slot in slots.items() if slot.key in protected_weights}
    groups = {g.name: g for g in analysis.groups if g.prunable and not protected & set(g.layers)}
    if not groups:
        reasons = "; ".join(f"{g.name}: {g.reason or 'protected'}" for g in analysis.groups)
        raise ChannelError(f"{type(analysis.plain).__name__} has no channels that can be removed: {reasons}")
    return groups


def importance_of(
    analysis: Analysis,
    name: str,
    inputs: Any,
    loss_fn: LossFn | None,
    protect: Iterable[str] = (),
    seed: int = 0,
) -> dict[str, Tensor]:
    """:func:`channel_importance` of a network that has been analysed."""
    found = _measure_groups(analysis, prunable_groups(analysis, protect), name, inputs, loss_fn, seed)
    bad = [key for key, values in found.items() if not bool(torch.isfinite(values).all())]
    if bad:
        raise ValueError(
            f"importance {name!r} is NaN or infinite in {', '.join(bad)}; are weights or losses?"
        )
    return found


def _measure_groups(
    analysis: Analysis,
    groups: Mapping[str, ChannelGroup],
    name: str,
    inputs: Any,
    loss_fn: LossFn | None,
    seed: int,
) -> dict[str, Tensor]:
    if name == "random":
        generator, device = seeded(seed), next(analysis.plain.parameters()).device
        return {
            key: torch.rand(group.channels, generator=generator).to(device) for key, group in groups.items()
        }
    if name == "bn":
        return {key: measure_scales(analysis.plain, group) for key, group in groups.items()}
    if name in ("l1", "l2"):
        values = {
            layer: slot.raw.detach().abs() if name == "l1" else slot.raw.detach().square()
            for layer, slot in named_slots(analysis.plain).items()
        }
        sums = {key: sum_weights(analysis.plain, group, values) for key, group in groups.items()}
        return sums if name == "l1" else {key: total.sqrt() for key, total in sums.items()}
    if name == "taylor":
        assert loss_fn is not None
        return measure_taylor(analysis.plain, groups, loss_fn)
    return measure_activations(analysis, "apoz" if name == "apoz" else "mean-activation", inputs, groups)


def sum_per_channel(member: Member, values: Tensor) -> Tensor:
    """Sums the values of a layer's indices over those that belong to each coupled channel."""
    owners = [number for number, unit in enumerate(member.indices) for _ in unit]
    indices = [index for unit in member.indices for index in unit]
    total = values.new_zeros(len(member.indices))
    chosen = values[torch.tensor(indices, device=values.device)]
    return total.index_add_(0, torch.tensor(owners, device=values.device), chosen)


def sum_weights(
    network: nn.Module,
    group: ChannelGroup,
    values: Mapping[str, Tensor],
    roles: tuple[str, ...] = ("output", "both", "input"),
) -> Tensor:
    """Sums a layer's numbers per weight over the weights that go with each coupled channel, each weight once."""
    parts = named_parts(network)
    total = torch.zeros(group.channels, device=next(network.parameters()).device)
    tables: dict[str, Tensor] = {}
    for member in group.members:
        if member.role not in roles or not isinstance(parts[member.name], PRUNABLE_LAYERS):
            continue
        name = member.name
        if name not in tables:
            tables[name] = connection_table(parts[name], values[name])
        elif member.role != "both":  # a layer that makes what it reads: rows and columns cross
            (other,) = (m for m in group.members if m.name == name and m is not member)
            rows, columns = (member, other) if member.role == "output" else (other, member)
            pairs = zip(rows.indices, columns.indices, strict=True)
            total = total - torch.stack([tables[name][list(r)][:, list(c)].sum() for r, c in pairs])
        total = total + sum_per_channel(member, tables[name].sum(int(member.role != "input")))
    return total


def measure_scales(network: nn.Module, group: ChannelGroup) -> Tensor:
    parts = named_parts(network)
    scales = [
        sum_per_channel(member, part.weight.detach().abs())
        for member in group.members
        if isinstance(part := parts[member.name], _BatchNorm) and part.affine
    ]
    if not scales:
        raise ChannelError(f"{group.name} is followed by no batch norm with a scale; protect it, or use 'l1'")
    return torch.stack(scales).sum(0)


def measure_taylor(
    network: nn.Module, groups: Mapping[str, ChannelGroup], loss_fn: LossFn
) -> dict[str, Tensor]:
    network = drop_picker(copy.deepcopy(network)).requires_grad_(
        True
    )  # in its present mode, as the score of that name
    weights = {name: slot.raw for name, slot in named_slots(network).items()}
    parts = named_parts(network)
    totals: dict[str, Tensor] = {}
    with undisturbed(network), torch.enable_grad():
        for loss in losses_of(network, loss_fn):
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            products = {
                key: torch.zeros_like(weight) if gradient is None else (gradient * weight).detach()
                for (key, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            for key, group in groups.items():
                read = any(
                    member.role == "input" and isinstance(parts[member.name], PRUNABLE_LAYERS)
                    for member in group.members
                )
                roles = ("input",) if read else ("output", "both")
                change = sum_weights(network, group, products, roles).square()
                totals[key] = totals[key] + change if key in totals else change
    return totals


def measure_activations(
    analysis: Analysis, name: str, inputs: Any, groups: Mapping[str, ChannelGroup]
) -> dict[str, Tensor]:
    wanted = {layer for group in groups.values() for layer in group.layers}
    names = {slot.key: name for name, slot in named_slots(analysis.plain).items()}
    others = [key for key, name in names.items() if name not in wanted]
    batches = analysis.arguments if inputs is None else inputs
    by_weight = channel_scores(analysis.plain, name, batches, others)
    scores = {names[key]: values for key, values in by_weight.items()}
    result = {}
    for key, group in groups.items():
        found = [
            sum_per_channel(member, scores[member.name])
            for member in group.members
            if member.role != "input" and member.name in scores
        ]
        result[key] = torch.stack(found).sum(0)
    return result
