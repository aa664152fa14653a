"""Masking, holding and removing channels of a network together with all that is coupled to them.

Channels that are coupled (by a skip connection, a normalisation, a grouped convolution) go together; see
``graph``. Removing is checked each time: the smaller network must give the output of the masked one,
or :class:`ChannelError` says which layer stands in the way.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ganprune.channels.analysis import Analysis, OtherOutputError, analyse, try_removal
from ganprune.channels.cutting import centre_norms, masks_of, zero_channels
from ganprune.channels.groups import ChannelGroup, Cut
from ganprune.channels.parts import ChannelError, drop_picker, named_slots, settle_reshapes
from ganprune.masks.keep import MaskKeeper, keep_mask
from ganprune.masks.mask import Mask
from ganprune.masks.names import find_adapter, rewrap, unwrap
from ganprune.networks.convolutional import DCGANDiscriminatorSpec, DCGANGeneratorSpec
from ganprune.networks.fully_connected import MLPDiscriminatorSpec, MLPGeneratorSpec
from ganprune.networks.registry import MODEL_SPECS
from ganprune.networks.shrunk import shrunk_spec


def channel_groups(network: nn.Module, inputs: Any = None) -> tuple[ChannelGroup, ...]:
    """The coupled channels of a network, in module order, and for each group whether it can be pruned.

    Every convolution and linear layer makes the channels of one group, or of several behind a concatenation.
    A group is prunable if its channels do not reach the output, no layer in it is frozen, shared or run twice,
    and a trial removal from a copy with random weights gives the output of the masked copy; otherwise its
    ``reason`` says what stands in the way.

    Args:
        network: any module, left as it was; norms on its weights are folded in a copy.
        inputs: what the network takes: a tensor, a tuple of arguments, or an iterable of these (of which the
            first is used). None for a network that has a spec or a ``latent_dim``.

    Returns:
        The groups.

    Raises:
        ChannelError: if the network cannot be followed on the inputs at all.
        ValueError: if no weight is prunable, or ``inputs`` is None and the network does not say what it takes.
    """
    return analyse(network, inputs).groups


def remove_channels(
    network: nn.Module, channels: Mapping[str, Iterable[int]], inputs: Any = None
) -> nn.Module:
    """A smaller network without the given channels and all that is coupled to them.

    Args:
        network: any module, left as it was.
        channels: layer name → indices of its output channels. Naming one of several coupled layers is enough;
            within that layer all that belong together must be named.
        inputs: as for :func:`channel_groups`.

    Returns:
        A new network, in the modes of the old one, whose output in evaluation mode is that of the masked
        network. Norms on weights are folded in. Networks with a spec have one that says how
        they are built, so that ``save`` and ``load`` work; other networks come back as a pruned copy.

    Raises:
        ChannelError: if a layer's channels cannot be removed, with the reason.
        TypeError: if ``channels`` is no mapping, or an index no integer (as a flag per channel).
        ValueError: if a layer or channel does not exist, or as in :func:`channel_groups`.
    """
    analysis = analyse(network, inputs)
    return finish_removal(analysis, analysis.cut(channels))


def finish_removal(analysis: Analysis, cut: Cut) -> nn.Module:
    """The network without what is cut out, and with its spec.

    Raises:
        ChannelError: if the result is not the masked network, with its own weights or with random ones.
    """
    if not analysis.approximate:
        try_removal(analysis.randomised, cut, analysis.arguments, absolute=False)
    try:
        small = try_removal(analysis.plain, cut, analysis.arguments)
    except OtherOutputError as error:
        if not analysis.approximate:
            raise
        small = error.small
        warnings.warn(
            f"without these channels the outputs differ from those of the masked network by {error.difference:.2%} of "
            "their size on the inputs, because something between the layers depends on how many channels there are; "
            "train the network further before you judge it",
            UserWarning,
            stacklevel=3,
        )
    settle_reshapes(small, analysis.arguments)
    fit_spec(small, analysis.plain)
    return dress(analysis, small)


def dress(analysis: Analysis, small: nn.Module) -> nn.Module:
    """A smaller network in the adapter of the one that was given; its spec says how both are built."""
    dressed = rewrap(analysis.source, drop_picker(small))
    spec = getattr(find_adapter(analysis.source), "spec", None)
    if dressed is not small and spec is not None and not hasattr(dressed, "spec"):
        dressed.spec = shrunk_spec(small, analysis.plain, spec)  # type: ignore[assignment]
    return dressed


def fit_spec(network: nn.Module, plain: nn.Module) -> None:
    """Gives a network whose layers have become smaller the spec that says so, if it has a spec.

    Args:
        network: the smaller one; its spec is replaced.
        plain: what it was before.

    Raises:
        ChannelError: if that is not known for this kind of spec, or does not give this network.
    """
    spec = getattr(network, "spec", None)
    if spec is not None:
        network.spec = _smaller_spec(network, plain, spec)  # type: ignore[assignment]


def _smaller_spec(network: nn.Module, plain: nn.Module, spec: Any) -> Any:
    """The spec of a network after layers have become smaller.

    Raises:
        ChannelError: if that is not known for this kind of spec, or does not give this network.
    """
    widths = [slot.outputs for slot in named_slots(network).values()][:-1]
    if isinstance(spec, (DCGANGeneratorSpec, DCGANDiscriminatorSpec)):
        changes: dict[str, Any] = {"channels": tuple(widths)}
    elif isinstance(spec, (MLPGeneratorSpec, MLPDiscriminatorSpec)):
        changes = {"hidden": tuple(widths)}
    elif MODEL_SPECS.get(type(spec).__name__) is type(spec):
        return shrunk_spec(network, plain, spec)
    else:
        raise ChannelError(
            f"it is not known how the spec {type(spec).__name__} looks for a smaller network; take the attribute "
            "spec off the network, or call it something else, to get a network without one"
        )
    if getattr(spec, "norm", None) == "spectral":
        changes["norm"] = "none"
    smaller = dataclasses.replace(spec, **changes)
    with torch.device("meta"):
        wanted = smaller.build().state_dict()
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in network.state_dict().items()}:
        raise ChannelError(f"the smaller network is not what the spec {smaller!r} describes")
    return smaller


def mask_channels(
    network: nn.Module,
    channels: Mapping[str, Iterable[int]],
    inputs: Any = None,
    consumers: bool = False,
) -> Mask:
    """Sets channels to zero in place: weights and bias of all coupled layers, γ and β of their normalisation.

    In evaluation mode such a channel's output is exactly zero. Under spectral norm the other weights of a layer
    change with its norm; mask :func:`fold_norms` of the network to compare with a shrunk one. To train on, use
    :func:`keep_channels`: ``keep_mask`` with the mask that comes back holds the weights alone.

    Args:
        network: any module.
        channels: as for :func:`remove_channels`.
        inputs: as for :func:`channel_groups`.
        consumers: also set the weights to zero that read these channels, which matters where an activation
            function makes something else of a zero.

    Returns:
        The mask of the weights.

    Raises:
        ChannelError: as in :func:`remove_channels`.
        TypeError: as in :func:`remove_channels`.
        ValueError: as in :func:`remove_channels`.
    """
    analysis = analyse(network, inputs)
    return zero_channels(unwrap(network), analysis.cut(channels), consumers)


def keep_channels(
    network: nn.Module,
    channels: Mapping[str, Iterable[int]],
    optimizer: Optimizer,
    inputs: Any = None,
    ema: nn.Module | None = None,
    consumers: bool = False,
) -> MaskKeeper:
    """Sets channels to zero, as :func:`mask_channels` does, and holds all of them there while an optimiser steps.

    Held are weights, biases, γ and β, and also the rows of embeddings and single parameters that belong to the
    channels, with whatever optimiser, weight decay and momentum. So after training :func:`remove_channels` of
    the same channels gives a network with the outputs of this one, in evaluation mode::

        with keep_channels(generator, channels, optimizer):
            ...  # zero_grad, backward, step as ever
        small = remove_channels(generator, channels)

    Batch norm sees zeros in such a channel, so its running mean stays zero and its running variance falls to
    zero; what comes out is zero. Where an activation function makes something else of a zero, as a
    sigmoid does, the layers behind it would read that: set ``consumers``. A run that is resumed calls this
    again, with the same channels; where all is zero already nothing changes.

    Args:
        network: any module.
        channels: as for :func:`remove_channels`.
        optimizer: moves the network's parameters.
        inputs: as for :func:`channel_groups`.
        ema: an exponential moving average of the network; the channels become zero in it too.
        consumers: also hold the weights at zero that read these channels.

    Returns:
        The keeper of :func:`~ganprune.masks.keep.keep_mask`, also a context manager. Its mask, and so its sparsity, is
        that of the weights; the rest is in ``others``, which stays as it is when ``update`` changes the mask.

    Raises:
        ChannelError: as in :func:`remove_channels`.
        TypeError: as in :func:`remove_channels` and :func:`~ganprune.masks.keep.keep_mask`.
        ValueError: as in :func:`remove_channels` and :func:`~ganprune.masks.keep.keep_mask`; then nothing is changed.
    """
    cut = analyse(network, inputs).cut(channels)
    network = unwrap(network)
    mask, others = masks_of(network, cut, consumers)
    keeper = keep_mask(network, mask, optimizer, ema, others=others)
    for one in (network, ema):
        if one is not None:
            centre_norms(unwrap(one), cut)
    return keeper
