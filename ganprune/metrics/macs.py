"""What a network computes: parameters, sparsity, multiply-accumulates, bytes."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from ganprune.core.modes import eval_mode
from ganprune.core.random import keep_random_state
from ganprune.masks.apply import check_fit
from ganprune.masks.mask import Mask
from ganprune.masks.weights import PRUNABLE_LAYERS, prunable_weights, weight_slots
from ganprune.networks.sampling import latent_dim_of, sample_latents

Inputs = Tensor | tuple[Tensor, ...] | None
"""One batch; a tuple for a network that takes several arguments, such as latents and labels."""


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; shared ones count once, buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_nonzero(model: nn.Module) -> int:
    """Number of parameters that are not zero; under spectral norm the raw weight is counted."""
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())


def sparsity(model: nn.Module, protect: Iterable[str] = ()) -> float:
    """Share of zeros among the prunable weights.

    Args:
        model: The network.
        protect: Names that pruning leaves alone, as for ``prunable_weights``.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If the model has no prunable weight.
    """
    weights = prunable_weights(model, protect).values()
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / sum(
        weight.numel() for weight in weights
    )


def network_sparsity(model: nn.Module) -> float:
    """Share of zeros among all parameters, normalisation and biases included."""
    total = count_parameters(model)
    if total == 0:
        raise ValueError(f"model {type(model).__name__} has no parameters")
    return 1 - count_nonzero(model) / total


def macs(model: nn.Module, inputs: Inputs = None) -> int:
    """Multiply-accumulates that dense kernels execute for one input: half of FlopCounterMode's count.

    Matrix products and convolutions count, taps on padding included; biases, normalisation and activations do
    not.

    Args:
        model: The network; it is left as it was.
        inputs: One or more inputs; default a latent (or an image) of the shape that the model's spec names.

    Returns:
        The number per input, rounded.

    Raises:
        ValueError: If ``inputs`` is missing and the model does not say what it takes.
    """
    return round(measure_work(model, inputs).dense)


def effective_macs(model: nn.Module, inputs: Inputs = None) -> int:
    """Multiply-accumulates for one input without those whose weight is zero.

    Every weight of a convolution or linear layer is used equally often, so a layer's count is its dense count
    times its share of non-zeros. Products outside such layers count in full.

    Args:
        model: The network; it is left as it was.
        inputs: As for ``macs``.

    Returns:
        The number per input, rounded.

    Raises:
        ValueError: As for ``macs``.
    """
    work = measure_work(model, inputs)
    return round(work.dense - work.skipped)


@torch.no_grad()
def layer_report(model: nn.Module, mask: Mask | None = None, inputs: Inputs = None) -> list[dict[str, Any]]:
    """One row per convolution or linear layer, prunable or not.

    Args:
        model: Any module; it is left as it was.
        mask: Counts the kept weights; without it the non-zero weights are counted.
        inputs: As for ``macs``.

    Returns:
        Rows with name, shape, total, prunable, nonzero, sparsity, outputs, ``starved`` (fewer weights left than
        outputs, so that some outputs are constant), and macs and effective_macs for one input. These two are None
        if neither inputs are given nor the model has a spec, or if the weight is used outside its layer.

    Raises:
        ValueError: If the mask does not fit the model.

    Warns:
        UserWarning: That names the starved layers.
    """
    slots = weight_slots(model)
    if not slots:
        return []
    if mask is not None:
        check_fit(model, mask)
    prunable = set(mask if mask is not None else prunable_weights(model))
    known = inputs is not None or getattr(model, "spec", None) is not None
    uses = measure_work(model, inputs).uses if known else {}
    rows = []
    for key, slot in slots.items():
        kept = mask[key] if mask is not None and key in mask else slot.raw != 0
        nonzero, total = int(kept.sum()), slot.raw.numel()
        times = uses.get(id(slot.raw if slot.kind == "plain" else slot.layer))
        rows.append(
            {
                "name": key,
                "shape": tuple(slot.raw.shape),
                "total": total,
                "prunable": key in prunable,
                "nonzero": nonzero,
                "sparsity": 1 - nonzero / total,
                "outputs": slot.outputs,
                "starved": nonzero < slot.outputs,
                "macs": None if times is None else round(times * total),
                "effective_macs": None if times is None else round(times * nonzero),
            }
        )
    starved = [f"{row['name']} ({row['nonzero']} for {row['outputs']})" for row in rows if row["starved"]]
    if starved:
        warnings.warn(
            f"fewer weights than outputs are left in {', '.join(starved)}", UserWarning, stacklevel=3
        )
    return rows


def file_bytes(model: nn.Module) -> int:
    """Size in bytes of the model's state dict as a safetensors file."""
    return len(_serialised(model))


def compressed_bytes(model: nn.Module, level: int = 6) -> int:
    """Size in bytes of the same file after zlib compression: what sparsity saves on a disk or a wire."""
    return len(zlib.compress(_serialised(model), level))


def call_arguments(model: nn.Module, count: int, inputs: Inputs) -> tuple[Tensor, ...]:
    """The inputs as arguments of a forward pass: as given, or else ``count`` of the default ones."""
    if inputs is None:
        return (_inputs(model, count),)
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _inputs(model: nn.Module, count: int) -> Tensor:
    """Inputs of the shape that a model's spec names: latents for a generator, images for a discriminator."""
    parameter = next(model.parameters())
    if _takes_latents(model):
        latents = sample_latents(count, latent_dim_of(model), seed=0)
        return latents.to(parameter)
    shape = _image_shape(model)
    if shape is None:
        raise ValueError(
            f"inputs must be given, because {type(model).__name__} has neither latent_dim nor a spec that "
            "names a shape"
        )
    return torch.zeros(count, *shape, dtype=parameter.dtype, device=parameter.device)


def _takes_latents(model: nn.Module) -> bool:
    return bool(
        getattr(getattr(model, "spec", None), "latent_dim", None) or getattr(model, "latent_dim", None)
    )


def _image_shape(model: nn.Module) -> tuple[int, ...] | None:
    spec = getattr(model, "spec", None)
    named = getattr(spec, "image_shape", None) or getattr(spec, "input_shape", None)
    return named or getattr(model, "image_shape", None)


@dataclass
class _Work:
    """Multiply-accumulates for one input: of dense kernels, those with a zero weight, and uses of each weight."""

    dense: float
    skipped: float
    uses: dict[int, float]


@torch.no_grad()
def measure_work(model: nn.Module, inputs: Inputs) -> _Work:
    """Counts one forward pass."""
    batch = call_arguments(model, 1, inputs)
    samples = len(batch[0])
    work = _Work(0.0, 0.0, {})

    def count(
        layer: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
    ) -> None:
        if isinstance(layer, nn.Linear):
            uses = output.numel() // layer.out_features
        else:
            given = arguments[0] if arguments else named["input"]
            source = given if isinstance(layer, _ConvTransposeNd) else output
            spatial = source.shape[-len(layer.kernel_size) :]  # type: ignore[arg-type]
            uses = math.prod(spatial) * (source.shape[0] if source.dim() == len(spatial) + 2 else 1)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        work.skipped += uses * (weight.numel() - int(weight.count_nonzero())) / samples
        key = id(layer._parameters.get("weight", layer))  # a weight that layers share is used by all of them
        work.uses[key] = work.uses.get(key, 0.0) + uses / samples

    handles = [
        layer.register_forward_hook(count, with_kwargs=True)
        for layer in model.modules()
        if isinstance(layer, PRUNABLE_LAYERS)
    ]
    counter = FlopCounterMode(display=False)
    try:
        with eval_mode(model), keep_random_state(batch[0].device), counter:
            model(*batch)
    finally:
        for handle in handles:
            handle.remove()
    work.dense = counter.get_total_flops() / 2 / samples
    return work


def _serialised(model: nn.Module) -> bytes:
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.numel())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        tensors[name] = tensor.detach().cpu().contiguous()
    return safetensors.torch.save(tensors)
