"""How much a network computes: its multiply-accumulates (MACs), as a whole and layer by layer.

Two counts are kept apart. ``macs`` is what dense kernels execute, zeros included; it is what time depends on.
``effective_macs`` leaves out the products with a zero weight; only kernels that skip zeros would gain from them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvTransposeNd

from ganprune.core.checks import check_integer
from ganprune.core.modes import eval_mode, frozen, setting
from ganprune.core.random import keep_random_state
from ganprune.masks.apply import check_fit
from ganprune.masks.mask import Mask
from ganprune.masks.weights import PRUNABLE_LAYERS, WeightSlot, prunable_weights, weight_slots
from ganprune.networks.sampling import default_inputs

Inputs = Tensor | tuple[Any, ...] | None
"""One batch; a tuple for a network that takes several arguments, such as latents and labels."""


@dataclass
class Work:
    """Multiply-accumulates for one input.

    Attributes:
        dense: what dense kernels execute, zeros included.
        skipped: how many of them multiply with a zero weight of a convolution or linear layer.
        uses: how often each such weight takes part, by the identity of the parameter, or of the layer where a norm
            makes the weight anew.
    """

    dense: float = 0.0
    skipped: float = 0.0
    uses: dict[int, float] = field(default_factory=dict)

    def uses_of(self, slot: WeightSlot) -> float | None:
        """How often each entry of a weight is used; None if its layer did not run."""
        return self.uses.get(id(slot.raw if slot.kind == "plain" else slot.layer))


def macs(network: nn.Module, inputs: Inputs = None, samples: int | None = None) -> int:
    """Multiply-accumulates that dense kernels execute for one input.

    Convolutions and matrix products count, those of attention and of recurrent layers too, and taps on padding;
    biases, normalisation and activations do not.

    Args:
        network: any module; it is left as it was.
        inputs: a batch of any size; default a latent (or an image) of the shape that the network's spec names.
        samples: number of inputs in the batch; default the length of the first tensor. To be given where inputs are
            counted along another dimension, as in sequences of shape (length, N, features).

    Returns:
        The number per input, rounded.

    Raises:
        ValueError: if ``inputs`` is missing and the network does not say what it takes.
    """
    return round(measure_work(network, inputs, samples).dense)


def effective_macs(network: nn.Module, inputs: Inputs = None, samples: int | None = None) -> int:
    """Multiply-accumulates for one input without those whose weight is zero.

    Every weight of a convolution or linear layer is used equally often, so a layer's count is its dense count times
    its share of non-zeros. Products outside such layers, recurrent layers and the packed projection of
    ``nn.MultiheadAttention`` count in full. Arguments and errors are those of :func:`macs`.
    """
    work = measure_work(network, inputs, samples)
    return round(work.dense - work.skipped)


@torch.no_grad()
def measure_work(network: nn.Module, inputs: Inputs = None, samples: int | None = None) -> Work:
    """Counts one forward pass in evaluation mode; arguments and errors are those of :func:`macs`."""
    from torch.utils.flop_counter import FlopCounterMode  # a slow import that few need

    arguments = call_arguments(network, 1, inputs)
    samples = count_samples(arguments, samples)
    work = Work()

    own_slots = {
        id(slot.own[0]): slot
        for slot in weight_slots(network).values()
        if slot.own is not None and slot.raw.numel()
    }

    def note(weight: Tensor, key: int, uses: float) -> None:
        work.skipped += uses * (weight.numel() - int(weight.count_nonzero())) / samples
        work.uses[key] = work.uses.get(key, 0.0) + uses / samples

    def count(layer: Any, positional: tuple, named: dict[str, Any], output: Any) -> None:
        if isinstance(
            layer, nn.MultiheadAttention
        ):  # it uses its last layer's weight without calling the layer
            layer, uses = layer.out_proj, output[0].numel() // layer.embed_dim
        else:
            uses = _uses(layer, positional[0] if positional else named["input"], output)
        own.begun[-1] += uses * layer.weight.numel()
        # a weight that layers share is used by all of them
        note(layer.weight, id(layer._parameters.get("weight", layer)), uses)

    counter = FlopCounterMode(display=False)
    parts = {id(slot.layer) for slot in own_slots.values()}
    own = _OwnLayers(counter.get_total_flops)
    with (
        ExitStack() as hooks,
        eval_mode(network),
        frozen(network),
        keep_random_state(device_of(arguments)),
        _countable_kernels(),
        counter,
    ):
        for layer in network.modules():
            if (slot := own_slots.get(id(layer))) is not None:
                own.watch(layer, slot, hooks)
            elif isinstance(layer, (*PRUNABLE_LAYERS, nn.MultiheadAttention)) and id(layer) not in parts:
                hooks.enter_context(layer.register_forward_hook(count, with_kwargs=True))
        network(*arguments)
    for slot, products in own.products:
        note(slot.raw, id(slot.raw), products / slot.raw.numel())
    work.dense = counter.get_total_flops() / 2 / samples
    return work


class _OwnLayers:
    """The products that registered layers of one's own compute, without those of registered layers inside of them."""

    def __init__(self, flops: Callable[[], int]) -> None:
        self.flops, self.begun = flops, [0.0]
        self.starts: list[int] = []
        self.products: list[tuple[WeightSlot, float]] = []

    def watch(self, layer: nn.Module, slot: WeightSlot, hooks: ExitStack) -> None:
        """Counts what is computed between the beginning and the end of a layer's forward pass."""

        def before(*_: Any) -> None:
            self.starts.append(self.flops())
            self.begun.append(0.0)

        def after(*_: Any) -> None:
            products, inside = (self.flops() - self.starts.pop()) / 2, self.begun.pop()
            self.begun[-1] += products
            if products > inside:
                self.products.append((slot, products - inside))

        hooks.enter_context(layer.register_forward_pre_hook(before))
        hooks.enter_context(layer.register_forward_hook(after))


def _uses(layer: Any, given: Tensor, output: Tensor) -> int:
    """How often each weight of a convolution or linear layer is used in one call; 0 if it has none."""
    if layer.weight.numel() == 0:
        return 0
    if isinstance(layer, nn.Linear):
        return output.numel() // layer.out_features
    source = given if isinstance(layer, _ConvTransposeNd) else output
    spatial = source.shape[-len(layer.kernel_size) :]
    return math.prod(spatial) * (source.shape[0] if source.dim() == len(spatial) + 2 else 1)


@contextmanager
def _countable_kernels() -> Iterator[None]:
    """Attention and recurrent layers as matrix products: FLOP counters do not know what fused kernels compute."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    fused = ((torch.backends.mkldnn, "enabled", False), (torch.backends.cudnn, "enabled", False))
    try:
        with sdpa_kernel(SDPBackend.MATH), setting(*fused):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def layer_report(
    network: nn.Module, mask: Mask | None = None, inputs: Inputs = None, samples: int | None = None
) -> list[dict[str, Any]]:
    """One row per convolution or linear layer, prunable or not.

    Args:
        network: any module; it is left as it was.
        mask: counts the kept weights; without it the non-zero weights are counted.
        inputs: as for :func:`macs`.
        samples: as for :func:`macs`.

    Returns:
        Rows with name, shape, total, prunable, nonzero, sparsity, outputs, ``starved`` (fewer weights left than
        outputs, so that some outputs are constant), and macs and effective_macs for one input. These two are None
        if neither inputs are given nor the network has a spec, or if the layer did not run.

    Raises:
        ValueError: if the mask does not fit the network.

    Warns:
        UserWarning: that names the starved layers.
    """
    slots = weight_slots(network)
    if not slots:
        return []
    if mask is not None:
        check_fit(network, mask)
    prunable = set(mask if mask is not None else prunable_weights(network))
    known = inputs is not None or getattr(network, "spec", None) is not None
    work = measure_work(network, inputs, samples) if known else Work()
    rows = []
    for key, slot in slots.items():
        kept = mask[key] if mask is not None and key in mask else slot.raw != 0
        rows.append(_row(slot, key in prunable, int(kept.sum()), work.uses_of(slot)))
    starved = [f"{row['name']} ({row['nonzero']} for {row['outputs']})" for row in rows if row["starved"]]
    if starved:
        message = f"fewer weights than outputs are left in {', '.join(starved)}"
        warnings.warn(message, UserWarning, stacklevel=2)
    return rows


def _row(slot: WeightSlot, prunable: bool, nonzero: int, uses: float | None) -> dict[str, Any]:
    total = slot.raw.numel()
    return {
        "name": slot.key,
        "shape": tuple(slot.raw.shape),
        "total": total,
        "prunable": prunable,
        "nonzero": nonzero,
        "sparsity": 1 - nonzero / total if total else 0.0,
        "outputs": slot.outputs,
        "starved": nonzero < slot.outputs,
        "macs": None if uses is None else round(uses * total),
        "effective_macs": None if uses is None else round(uses * nonzero),
    }


def call_arguments(network: nn.Module, count: int, inputs: Inputs) -> tuple[Any, ...]:
    """The inputs as arguments of a forward pass, without gradients: as given, or else ``count`` default ones.

    Raises:
        ValueError: if there are no inputs and the network does not say what it takes.
    """
    if inputs is None:
        return default_inputs(network, count)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(one.detach() if isinstance(one, Tensor) else one for one in given)


def count_samples(arguments: tuple[Any, ...], samples: int | None = None) -> int:
    """Number of inputs in a batch: as it is given, or else the length of the first tensor that has a dimension.

    Raises:
        ValueError: if it is given and no integer of at least 1, or if there is no such tensor.
    """
    if samples is not None:
        return check_integer("samples", samples, 1)
    lengths = [len(one) for one in arguments if isinstance(one, Tensor) and one.dim()]
    if not lengths or lengths[0] == 0:
        raise ValueError("samples must be given, because no tensor among the inputs says how many they are")
    return lengths[0]


def device_of(arguments: tuple[Any, ...]) -> torch.device:
    """The device of the first tensor among the arguments; the CPU if there is none."""
    return next((one.device for one in arguments if isinstance(one, Tensor)), torch.device("cpu"))
