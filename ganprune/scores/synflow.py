"""SynFlow: scores without data, from a linear copy of the network whose weights are all positive."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ganprune.core.checks import check_integer
from ganprune.masks.mask import check_sparsity, pruned_count
from ganprune.masks.names import unwrap
from ganprune.masks.select import keep_largest
from ganprune.masks.weights import prunable_slots, weight_slots
from ganprune.scores.activation import functions_named
from ganprune.scores.registry import register_score, warn_of_idle

_IDENTITIES = functions_named(
    "relu relu_ leaky_relu leaky_relu_ rrelu rrelu_ prelu relu6 elu elu_ selu selu_ celu celu_ gelu silu mish "
    "tanh tanh_ sigmoid sigmoid_ softplus softsign hardtanh hardtanh_ hardsigmoid hardswish logsigmoid "
    "threshold hardshrink softshrink tanhshrink softmax log_softmax softmin gumbel_softmax "
    "dropout dropout1d dropout2d dropout3d alpha_dropout "
    "normalize layer_norm group_norm instance_norm rms_norm local_response_norm"
)
_SIZES = functions_named("rsqrt sqrt norm std var") | {torch.linalg.norm, torch.linalg.vector_norm}
_NOISE = functions_named("rand randn rand_like randn_like normal normal_ uniform_")
_WEIGHTED = functions_named("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")


class _Linearised(TorchFunctionMode):
    """Makes a forward pass linear in each weight, wherever in it the functions of torch are called.

    Attributes:
        running: the keys of the prunable layers that are running, the innermost last.
        made: key → the weight that a layer made in its ``forward`` out of its parameter (a norm or multiplier, of
            PyTorch's or of one's own). What stands here takes the place of what the layer makes.
        recording: whether ``made`` is being filled, by a pass of the network as it is.
    """

    def __init__(self, raw: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.raw, self.recording = raw, True
        self.running: list[str] = []
        self.made: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first: Any = args[0] if args else kwargs.get("input")
        if func in _WEIGHTED:
            args, kwargs = self._replace_weight(args, kwargs)
        if func is nn.functional.batch_norm:
            return _scale_of_batch_norm(*args, **kwargs)
        flows = (
            isinstance(first, Tensor) and first.requires_grad
        )  # no number that a layer makes from parameters
        if flows and func in _IDENTITIES:
            return first.clone()
        result = func(*args, **kwargs)
        if func in _NOISE:  # noise is an input too
            return result.fill_(1.0)
        return torch.ones_like(result) if flows and func in _SIZES else result

    def _replace_weight(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        key = self.running[-1] if self.running else None
        if key is None or weight is self.raw[key] or weight.shape != self.raw[key].shape:
            return args, kwargs
        if self.recording:
            self.made[key] = weight.detach().abs()
            return args, kwargs
        weight = self.made.get(key, weight)
        return (
            ((args[0], weight, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "weight": weight})
        )


def _scale_of_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm in evaluation mode with β and running mean zero: x γ / √(σ² + ε)."""
    scale = input.new_ones(input.shape[1]) if running_var is None else 1 / (running_var + eps) ** 0.5
    return input * (scale if weight is None else scale * weight).view(-1, *[1] * (input.ndim - 2))


def _copy(network: nn.Module, linearise: tuple[type[nn.Module], ...]) -> nn.Module:
    """A float64 copy in evaluation mode whose biases are zero, without gradients."""
    kept = {  # tensors that belong to a graph, as the older norms leave them behind, cannot be copied
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    twin = copy.deepcopy(unwrap(network), kept).requires_grad_(False).eval()
    if any(p.device.type == "mps" for p in twin.parameters()):
        twin.cpu()  # Apple's GPUs have no float64
    twin.double()
    for module in twin.modules():
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias.zero_()
        if isinstance(module, linearise):
            module.forward = lambda x, *rest, **options: x  # type: ignore[method-assign]
    return twin


@contextmanager
def _float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _Flow:
    """A linear copy of a network with absolute weights, and R, the sum of its outputs for an input of ones.

    Attributes:
        weights: key → the absolute weights, to be set to zero as pruning goes on.
    """

    def __init__(
        self, network: nn.Module, keys: Iterable[str], inputs: Any, linearise: tuple[type[nn.Module], ...]
    ) -> None:
        self.twin = _copy(network, linearise)
        slots = weight_slots(self.twin)
        self.mode = _Linearised({key: slot.raw for key, slot in slots.items()})
        for key, slot in slots.items():
            slot.layer.register_forward_pre_hook(lambda *_, key=key: self.mode.running.append(key))
            slot.layer.register_forward_hook(lambda *_: self.mode.running.pop() and None)
        self.arguments = _ones(network, inputs, next(self.twin.parameters()).device)
        self.total()
        self.mode.recording = False
        with torch.no_grad():
            for tensor in (*self.twin.parameters(), *self.twin.buffers()):
                if tensor.is_floating_point():
                    tensor.abs_()
        self.weights = {key: self.mode.made.get(key, slots[key].raw).requires_grad_(True) for key in keys}

    def total(self) -> Tensor:
        """R, a float64 scalar."""
        try:
            with torch.enable_grad(), _float64_by_default():
                arguments = [x.clone() if isinstance(x, Tensor) else x for x in self.arguments]
                with self.mode:
                    output = self.twin(*arguments)
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(
                f"score 'synflow' runs a float64 copy of the network on ones, which failed: {error}"
            ) from error
        outputs = [one for one in _tensors(output) if one.is_floating_point()]
        if not outputs:
            raise ValueError(
                f"score 'synflow' needs a network that returns tensors, got {type(output).__name__}"
            )
        with torch.enable_grad():
            return torch.stack([one.double().sum() for one in outputs]).sum()

    def scores(self) -> dict[str, Tensor | None]:
        """``|∂R/∂w ⊙ w|`` by key; None where R does not depend on the weight."""
        total = self.total()
        if not total.requires_grad:
            return dict.fromkeys(self.weights)
        found = torch.autograd.grad(total, list(self.weights.values()), allow_unused=True)
        return {
            key: None if slope is None else (slope * weight.detach()).abs()
            for (key, weight), slope in zip(self.weights.items(), found, strict=True)
        }


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a network returns: a tensor, or tuples, lists and dicts of them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list, dict)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def _ones(network: nn.Module, inputs: Any, device: torch.device) -> tuple[Any, ...]:
    """One sample of ones that require a gradient, in the inputs' shape; integers (class labels) stay as they are."""
    if inputs is None:
        spec = getattr(unwrap(network), "spec", unwrap(network))
        shapes = (getattr(spec, name, None) for name in ("latent_dim", "image_shape", "input_shape"))
        shape = next((found for found in shapes if found is not None), None)
        if shape is None:
            raise ValueError(
                "score 'synflow' needs inputs (a batch that shows their shape) for a network without a spec"
            )
        inputs = torch.ones(
            1, *([shape] if isinstance(shape, int) else shape), dtype=torch.float32, device=device
        )
    return tuple(
        torch.ones_like(one[:1], dtype=torch.float64, device=device, requires_grad=True)
        if isinstance(one, Tensor) and one.is_floating_point()
        else one[:1].to(device)
        if isinstance(one, Tensor)
        else one
        for one in (inputs if isinstance(inputs, tuple) else (inputs,))
    )


@register_score("synflow", needs=("sparsity",), optional=("inputs",))
def synflow(
    network: nn.Module,
    inputs: Any = None,
    sparsity: float | None = None,
    rounds: int = 100,
    linearise: tuple[type[nn.Module], ...] = (),
    protect: Iterable[str] = (),
) -> dict[str, Tensor]:
    """``|∂R/∂w ⊙ w|`` with ``R = 1ᵀ (∏ |W|) 1``, in rounds towards a sparsity; needs no data and no loss.

    Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving synaptic flow",
    equations 3 and 4 and algorithm 1. Each round k of n scores the weights that are left and keeps a share
    density^(k/n). In a chain of layers without biases the flow through each layer is the same, so that the largest
    scores cannot all be in one layer and no layer is emptied early; one round has no such protection. A layer that
    takes no part in the output has no flow and is pruned first, with a warning.

    R is computed on a float64 copy of the network with absolute weights, no biases, batch norm in evaluation mode
    with β and running mean zero, noise replaced by ones, and every saturating or normalising function (Tanh,
    softmax, pixel norm, any division by a norm of activations) replaced by the identity. Left in, the output Tanh
    saturates and only the border pixels would be scored. Where a layer makes its weight from a parameter (spectral
    norm, equalised learning rate, of PyTorch's or of one's own), the absolute value of what it makes is scored.

    Args:
        network: any network that is made of linear maps, monotone activations and norms.
        inputs: a batch (or a tuple of arguments) that shows the shape; its values are replaced by ones. None
            for networks with a spec.
        sparsity: what the rounds lead to. The result ranks the weights for this sparsity and every lower one.
            None makes a single round.
        rounds: n, at least 1.
        linearise: classes of modules to replace by the identity as well, for normalisations of one's own.
        protect: layers to leave out.

    Returns:
        float64. Scores of at least 0 for what is left after the last round; what round k removed has a number in
        [k − n − 1, k − n) that keeps the order within its round.

    Raises:
        ValueError: if the flow is infinite or zero, or the copy cannot run.
    """
    rounds = check_integer("rounds", rounds, 1)
    target = 0.0 if sparsity is None else check_sparsity(sparsity)
    flow = _Flow(network, original := prunable_slots(network, protect), inputs, linearise)
    sizes = [weight.numel() for weight in flow.weights.values()]
    total = sum(sizes)
    device = next(iter(flow.weights.values())).device
    left = torch.arange(total, device=device)
    ranks = torch.empty(total, dtype=torch.float64, device=device)
    for number in range(1, rounds + 1 if target else 2):
        scores = flow.scores()
        if number == 1:
            _check_flow(scores)
        values = torch.cat(
            [
                weight.new_zeros(weight.numel()) if scores[key] is None else scores[key].flatten()  # type: ignore[union-attr]
                for key, weight in flow.weights.items()
            ]
        )[left]
        share = target if number == rounds else 1 - (1 - target) ** (number / rounds)
        stays = keep_largest(values, total - pruned_count(share, total))
        gone = left[~stays]
        order = values[~stays].argsort(stable=True).argsort().double()
        ranks[gone] = order / max(len(gone), 1) + (number - rounds - 1)
        left = left[stays]
        ranks[left] = values[stays]
        _set_to_zero(flow.weights, gone, sizes)
    parts = ranks.to(next(iter(original.values())).raw.device if device.type != "cpu" else "cpu").split(sizes)
    return {key: part.view(flow.weights[key].shape) for key, part in zip(flow.weights, parts, strict=True)}


def _check_flow(scores: Mapping[str, Tensor | None]) -> None:
    idle = [key for key, value in scores.items() if value is None]
    found = [value.sum() for value in scores.values() if value is not None]
    total = float(torch.stack(found).sum()) if found else 0.0
    if not math.isfinite(total):
        raise ValueError(
            "score 'synflow' overflows on this network: some part of it cannot be made linear; name its class in "
            "linearise=(…), which replaces it by the identity"
        )
    if total == 0:
        raise ValueError(
            "score 'synflow' finds no flow from the inputs to the outputs of this network: its output does not "
            "depend on a prunable weight, or a part of it subtracts all there is; name that part's class in "
            "linearise=(…)"
        )
    warn_of_idle(idle, "the output")


@torch.no_grad()
def _set_to_zero(weights: Mapping[str, Tensor], places: Tensor, sizes: list[int]) -> None:
    """Sets to zero what stands at these places of all weights, one after the other."""
    kept = torch.ones(sum(sizes), dtype=torch.bool, device=places.device)
    kept[places] = False
    for weight, part in zip(weights.values(), kept.split(sizes), strict=True):
        weight.mul_(part.view(weight.shape))
