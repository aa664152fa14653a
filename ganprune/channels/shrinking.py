"""Structured pruning: how many channels of each layer go, which ones, and the smaller network that is left.

:func:`plan_channels` decides and promises parameters and multiply-accumulates; :func:`shrink_channels` carries
it out and keeps the promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.channels.analysis import Analysis, analyse
from ganprune.channels.counting import Sizes
from ganprune.channels.groups import ChannelGroup
from ganprune.channels.importance import (
    COMPARABLE,
    LossFn,
    check_importance,
    importance_of,
    prunable_groups,
)
from ganprune.channels.parts import ChannelError, list_batches
from ganprune.channels.surgery import finish_removal
from ganprune.core.checks import check_choice, check_integer, check_number
from ganprune.masks.mask import check_sparsity, pruned_count

CHANNEL_ALLOCATIONS = ("uniform", "global")


@dataclass(frozen=True)
class ChannelPlan:
    """Which channels are to go, and what will be left.

    Attributes:
        removed: layer → the output channels that go; as :func:`remove_channels` and :func:`mask_channels` take it.
        kept: group → number of coupled channels that stay.
        parameters: of the smaller network.
        macs: its multiply-accumulates for one input, in convolutions and linear layers. (Products of
            activations, as in attention, are not in it.)
        dense_parameters: of the network as it is, norms folded in.
        dense_macs: of the network as it is.
    """

    removed: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, int]
    parameters: int
    macs: int
    dense_parameters: int
    dense_macs: int

    @property
    def parameters_fraction(self) -> float:
        """Share of the parameters that is left."""
        return self.parameters / self.dense_parameters

    @property
    def macs_fraction(self) -> float:
        """Share of the multiply-accumulates that is left."""
        return self.macs / self.dense_macs


def _round_count(kept: int, total: int, round_to: int, minimum: int) -> int:
    """The multiple of ``round_to`` nearest to ``kept``, but not below ``minimum``; all where there are fewer."""
    multiples = max(math.floor(kept / round_to + 0.5), math.ceil(minimum / round_to))
    return min(multiples * round_to, total)


def _count_kept(
    importance: Mapping[str, Tensor],
    ratio: float,
    allocation: str,
    comparable: bool,
    round_to: int,
    minimum: int,
) -> dict[str, int]:
    totals = {key: values.numel() for key, values in importance.items()}
    if allocation == "uniform":
        kept = {key: total - pruned_count(ratio, total) for key, total in totals.items()}
    else:
        pool = []
        for key, values in importance.items():
            values = values.detach().double().cpu()
            if not comparable:
                values = values / values.mean().clamp_min(1e-30)
            safe = min(max(minimum, 1), values.numel())  # the best stay, so that no layer is emptied
            order = values.sort(stable=True).values[: values.numel() - safe]
            pool += [(value, number, key) for number, value in enumerate(order.tolist())]
        position = {key: number for number, key in enumerate(importance)}
        pool.sort(key=lambda entry: (entry[0], position[entry[2]], entry[1]))
        kept = dict(totals)
        for _, _, key in pool[: pruned_count(ratio, sum(totals.values()))]:
            kept[key] -= 1
    return {key: _round_count(count, totals[key], round_to, minimum) for key, count in kept.items()}


def _choose_least(values: Tensor, count: int) -> list[int]:
    """The positions of the ``count`` smallest; of equal ones the first."""
    return sorted(values.detach().cpu().sort(stable=True).indices[:count].tolist())


def _make_plan(analysis: Analysis, sizes: Sizes, chosen: Mapping[str, list[int]]) -> ChannelPlan:
    groups = {group.name: group for group in analysis.groups}
    cut = analysis.cut_units(chosen)
    kept = {name: groups[name].channels - len(units) for name, units in chosen.items()}
    return ChannelPlan(analysis.outputs_in(cut), kept, *sizes.count(cut), *sizes.count({}))


def _check_options(
    channel_ratio: Any, macs_fraction: Any, allocation: Any, round_to: Any, minimum: Any
) -> tuple[float, int, int]:
    ratio = check_sparsity(channel_ratio, "channel_ratio")
    if macs_fraction is not None:
        check_number("macs_fraction", macs_fraction, "(0, 1]", " or None")
    check_choice("allocation", allocation, CHANNEL_ALLOCATIONS)
    return ratio, check_integer("round_to", round_to, 1), check_integer("minimum", minimum, 1)


def _decide(
    network: nn.Module,
    channel_ratio: float,
    importance: str | Mapping[str, Tensor],
    loss_fn: LossFn | None,
    inputs: Any,
    *,
    macs_fraction: float | None,
    allocation: str,
    round_to: int,
    minimum: int,
    protect: Iterable[str],
    seed: int,
    approximate: bool,
) -> tuple[Analysis, ChannelPlan]:
    ratio, round_to, minimum = _check_options(channel_ratio, macs_fraction, allocation, round_to, minimum)
    own = isinstance(importance, Mapping)
    if not own:
        check_importance(importance, loss_fn)
    protect = [protect] if isinstance(protect, str) else list(protect)
    inputs = list_batches(inputs)
    analysis = analyse(network, inputs, approximate)
    if isinstance(importance, Mapping):
        values = _own_importance(importance, prunable_groups(analysis, protect))
    else:
        values = importance_of(analysis, importance, inputs, loss_fn, protect, seed)
    comparable = own or importance in COMPARABLE
    sizes = Sizes.of(analysis.plain, analysis.arguments)

    def plan(share: float) -> ChannelPlan:
        counts = _count_kept(values, share, allocation, comparable, round_to, minimum)
        return _make_plan(
            analysis, sizes, {k: _choose_least(v, v.numel() - counts[k]) for k, v in values.items()}
        )

    if macs_fraction is None:
        return analysis, plan(ratio)
    return analysis, _search_ratio(plan, macs_fraction)


def _search_ratio(plan: Callable[[float], ChannelPlan], macs_fraction: float) -> ChannelPlan:
    """The plan of the largest network that leaves at most this share of the multiply-accumulates, by bisection.

    Raises:
        ChannelError: if there is none.
    """
    low, high = 0.0, 1.0 - 1e-9
    found = plan(high)
    if found.macs > macs_fraction * found.dense_macs:
        raise ChannelError(
            f"macs_fraction {macs_fraction} cannot be reached; with these options the least is "
            f"{found.macs_fraction:.4f}"
        )
    for _ in range(24):
        middle = (low + high) / 2
        between = plan(middle)
        if between.macs <= macs_fraction * between.dense_macs:
            high, found = middle, between
        else:
            low = middle
    return found


def _own_importance(given: Mapping[str, Tensor], groups: Mapping[str, ChannelGroup]) -> dict[str, Tensor]:
    unknown = [key for key in given if key not in groups]
    if unknown or not given:
        raise ValueError(f"importance must be keyed by some of {', '.join(groups)}, got {list(given)}")
    for key, values in given.items():
        if not isinstance(values, Tensor):
            raise TypeError(f"importance of {key} must be a tensor, got {type(values).__name__}")
        if tuple(values.shape) != (groups[key].channels,) or not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"importance of {key} must be {groups[key].channels} finite numbers, got {values!r}"
            )
    return dict(given)


def plan_channels(
    network: nn.Module,
    channel_ratio: float = 0.5,
    importance: str | Mapping[str, Tensor] = "l1",
    loss_fn: LossFn | None = None,
    inputs: Any = None,
    *,
    macs_fraction: float | None = None,
    allocation: str = "uniform",
    round_to: int = 1,
    minimum: int = 1,
    protect: Iterable[str] = (),
    seed: int = 0,
    approximate: bool = False,
) -> ChannelPlan:
    """What :func:`shrink_channels` would do with the same arguments; nothing is changed.

    Raises:
        ChannelError: as :func:`shrink_channels` does.
        ValueError: as :func:`shrink_channels` does.
        TypeError: as :func:`shrink_channels` does.
    """
    _, plan = _decide(
        network,
        channel_ratio,
        importance,
        loss_fn,
        inputs,
        macs_fraction=macs_fraction,
        allocation=allocation,
        round_to=round_to,
        minimum=minimum,
        protect=protect,
        seed=seed,
        approximate=approximate,
    )
    return plan


def shrink_channels(
    network: nn.Module,
    channel_ratio: float = 0.5,
    importance: str | Mapping[str, Tensor] = "l1",
    loss_fn: LossFn | None = None,
    inputs: Any = None,
    *,
    macs_fraction: float | None = None,
    allocation: str = "uniform",
    round_to: int = 1,
    minimum: int = 1,
    protect: Iterable[str] = (),
    seed: int = 0,
    approximate: bool = False,
) -> nn.Module:
    """A smaller network without the least important channels; the original is left as it was.

    A ratio p takes about 1 − (1 − p)² of the weights between two layers that both lose channels. What comes out
    has been checked: in evaluation mode it gives the output of the masked network on ``inputs``, and it has the
    parameters and multiply-accumulates that :func:`plan_channels` promises. Recalibrate batch norm
    (``recalibrate_batchnorm``) or train on before judging it: what a removed channel's β gave to later layers
    is gone.

    Norms on weights are folded in, and registered layers (:func:`ganprune.register_layer`) become plain ones. A
    discriminator of this package with spectral norm becomes one without (norm "none", the same gain on the logits);
    :func:`restore_spectral_norm` puts it back for further training. Networks of this package have a smaller ``spec``
    and are saved and loaded as ever. So are networks of one's own that ``CustomSpec`` has built, whose code may fix
    numbers of channels in ``view`` and ``reshape``: the numbers that fit are put in while they run. Of a network
    without a spec a pruned deep copy is returned.

    Args:
        network: any module with convolutions or linear layers.
        channel_ratio: fraction of the coupled channels that is removed, in [0, 1).
        importance: a name for :func:`channel_importance`, or group name → one number per channel; groups that
            are not named then stay whole.
        loss_fn: for the importance "taylor".
        inputs: what the network takes, as for :func:`channel_groups`.
        macs_fraction: if given, the ratio is found that leaves at most this share of the multiply-accumulates,
            in (0, 1], and ``channel_ratio`` is not used.
        allocation: "uniform" removes the ratio in every group; "global" compares all channels, after dividing
            "l1", "l2", "activation" and "apoz" by their mean in the group. "bn" with "global" is network
            slimming.
        round_to: each group keeps a multiple of this many channels, the nearest that is at least ``minimum``;
            groups that are smaller stay whole.
        minimum: each group keeps at least so many.
        protect: layers whose output channels stay.
        seed: for the importance "random".
        approximate: remove channels also where the output is then not that of the masked network, because something
            depends on how many channels there are, such as a norm over channels (pixel norm, layer norm written by
            hand). The difference on the inputs is measured, and a warning says it.

    Returns:
        The new network, in the mode and on the device of the old one.

    Raises:
        ChannelError: if no channels can be removed, with the reason for each group, or ``macs_fraction``
            cannot be reached.
        ValueError: if an argument is outside its range, or as in :func:`channel_groups`.
        TypeError: if ``channel_ratio`` or ``macs_fraction`` is not a number, or an importance no tensor.
    """
    analysis, plan = _decide(
        network,
        channel_ratio,
        importance,
        loss_fn,
        inputs,
        macs_fraction=macs_fraction,
        allocation=allocation,
        round_to=round_to,
        minimum=minimum,
        protect=protect,
        seed=seed,
        approximate=approximate,
    )
    small = finish_removal(analysis, analysis.cut(plan.removed))
    found = Sizes.of(small, analysis.arguments).count({})
    if found != (plan.parameters, plan.macs):
        raise ChannelError(
            f"{type(small).__name__} has {found[0]} parameters and {found[1]} multiply-accumulates after removing "
            f"channels, where {plan.parameters} and {plan.macs} were promised; the number of channels changes "
            "what its code does"
        )
    return small
