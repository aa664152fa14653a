"""SynFlow: scores without data, from a linear copy of the network whose weights are all positive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ganprune.core.checks import check_integer
from ganprune.masks.mask import check_sparsity, pruned_count
from ganprune.masks.names import find_adapter, unwrap
from ganprune.masks.select import keep_largest
from ganprune.masks.weights import prunable_slots, weight_slots
from ganprune.networks.parts import copy_network
from ganprune.networks.sampling import input_shape_of
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


class _LinearTwin(TorchFunctionMode):
    """A float64 copy of a network that is linear in each absolute weight, and R, its output for an input of ones.

    As a mode it replaces functions of torch wherever in the forward pass they are called, if they are called on
    something that depends on the input: a norm of a weight stays what it is. A first pass of the network as it is
    shows which weights its layers make.

    Attributes:
        made: key → the weight that a layer makes in ``forward`` out of its parameter (by a norm or multiplier, of
            PyTorch's or of its own), absolute. It takes the place of what the layer makes.
    """

    def __init__(self, network: nn.Module, inputs: Any, linearise: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.network = _unbiased_copy(network, linearise)
        self.slots = weight_slots(self.network)
        self.made: dict[str, Tensor] = {}
        self.recording = True
        self.running: list[str] = []  # prunable layers, the innermost last
        for key, slot in self.slots.items():
            slot.layer.register_forward_pre_hook(lambda *_, key=key: self.running.append(key))
            slot.layer.register_forward_hook(lambda *_: self.running.pop() and None)
        self.arguments = _ones(network, inputs, next(self.network.parameters()).device)
        self.total()
        self.recording = False
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            if tensor.is_floating_point():
                tensor.abs_()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first: Any = args[0] if args else kwargs.get("input")
        flows = isinstance(first, Tensor) and first.requires_grad
        if flows and func in _IDENTITIES:
            return first.clone()
        if func in _WEIGHTED and len(args) > 1:
            args = (first, self._weight(args[1]), *args[2:])
        if func is nn.functional.batch_norm and len(args) > 2 and args[1] is not None:
            args = (first, torch.zeros_like(args[1]), *args[2:])
        result = func(*args, **kwargs)
        if func in _NOISE:  # noise is an input too
            return result.fill_(1.0)
        return torch.ones_like(result) if flows and func in _SIZES else result

    def _weight(self, used: Tensor) -> Tensor:
        key = self.running[-1] if self.running else ""
        raw = self.slots[key].raw if key else used
        if used is raw or used.shape != raw.shape:
            return used
        if self.recording:
            self.made[key] = used.detach().abs()
        return self.made.get(key, used)

    def total(self) -> Tensor:
        """R, the sum of all that the network returns."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # for tensors that the network makes on its way
        try:
            with torch.enable_grad(), self:
                arguments = [one.clone() if isinstance(one, Tensor) else one for one in self.arguments]
                nothing = torch.zeros((), device=next(self.network.parameters()).device, requires_grad=True)
                return sum((one.sum() for one in _tensors(self.network(*arguments))), start=nothing)
        except (RuntimeError, TypeError, IndexError) as error:
            message = f"score 'synflow' runs a float64 copy of the network on ones, which failed: {error}"
            raise ValueError(message) from error
        finally:
            torch.set_default_dtype(default)


def _unbiased_copy(network: nn.Module, linearise: tuple[type[nn.Module], ...]) -> nn.Module:
    """A float64 copy in evaluation mode without biases and gradients; some modules are the identity in it."""
    twin = copy_network(unwrap(network)).requires_grad_(False).eval()
    if any(p.device.type == "mps" for p in twin.parameters()):
        twin.cpu()  # Apple's GPUs have no float64
    twin.double()
    for module in twin.modules():
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            bias.zero_()
        batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is None
        if batch_norm or isinstance(module, linearise):
            module.forward = lambda x, *rest, **options: x  # type: ignore[method-assign]
    return twin


def _tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a network returns: a tensor, or tuples, lists and dicts of them."""
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, (tuple, list, dict)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def _ones(network: nn.Module, inputs: Any, device: torch.device) -> tuple[Any, ...]:
    """One sample of ones that require a gradient, in the inputs' shape; integers (class labels) stay as they are."""
    adapter = find_adapter(network)
    if inputs is None and adapter is not None and adapter.draws:
        inputs = adapter.draw_inputs(1, 0)
    if inputs is None:
        shape = input_shape_of(unwrap(network))
        if shape is None:
            raise ValueError(
                "score 'synflow' needs inputs (a batch that shows their shape) for a network without a spec"
            )
        inputs = torch.ones(1, *shape, dtype=torch.float32, device=device)
    found = []
    for one in inputs if isinstance(inputs, tuple) else (inputs,):
        sample = one[:1].to(device) if isinstance(one, Tensor) else one
        if isinstance(one, Tensor) and one.is_floating_point():
            sample = torch.ones_like(sample, dtype=torch.float64, requires_grad=True)
        found.append(sample)
    return tuple(found)


@register_score("synflow", needs=("sparsity",), optional=("inputs",), options=("rounds", "linearise"))
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
    scores cannot all be in one layer and no layer is emptied early; one round has no such protection. Branches that
    add up (a residual block and its skip) are no chain: one of them can lose all its weights. A layer that takes no
    part in the output has no flow and is pruned first, with a warning.

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
    original = prunable_slots(network, protect)
    twin = _LinearTwin(network, inputs, linearise)
    weights = {key: twin.made.get(key, twin.slots[key].raw).requires_grad_(True) for key in original}
    flat = torch.cat([weight.detach().flatten() for weight in weights.values()])
    sizes = [weight.numel() for weight in weights.values()]
    for weight, part in zip(weights.values(), flat.split(sizes), strict=True):
        weight.data = part.view(weight.shape)  # what is set to zero in `flat` is zero in the network
    left, ranks = torch.arange(len(flat), device=flat.device), torch.empty_like(flat)
    for number in range(1, rounds + 1 if target else 2):
        slopes = torch.autograd.grad(
            twin.total(), list(weights.values()), allow_unused=True, materialize_grads=True
        )
        flow = (torch.cat([slope.flatten() for slope in slopes]) * flat).abs()
        if number == 1:
            _check_flow(dict(zip(weights, flow.split(sizes), strict=True)))
        share = target if number == rounds else 1 - (1 - target) ** (number / rounds)
        stays = keep_largest(flow[left], len(flat) - pruned_count(share, len(flat)))
        gone, left = left[~stays], left[stays]
        order = flow[gone].argsort(stable=True).argsort().double()
        ranks[gone] = order / max(len(gone), 1) + (number - rounds - 1)
        ranks[left] = flow[left]
        flat[gone] = 0.0
    device = next(iter(original.values())).raw.device
    parts = ranks.to(device if device.type != "mps" else "cpu").split(sizes)
    return {key: part.view(weight.shape) for (key, weight), part in zip(weights.items(), parts, strict=True)}


def _check_flow(flows: dict[str, Tensor]) -> None:
    total = float(torch.stack([flow.sum() for flow in flows.values()]).sum())
    if not 0 < total < math.inf:
        raise ValueError(
            f"score 'synflow' finds a flow of {total} through this network: a part of it that cannot be made linear "
            "lets nothing or too much through, or no output depends on a prunable weight. linearise=(…) takes the "
            "classes of modules that the identity shall replace"
        )
    warn_of_idle([key for key, flow in flows.items() if not flow.any()], "the output")
