"""Scores by the gradient of a loss: SNIP, GraSP, Taylor and the squared gradient.

Write g for the gradient of the loss with respect to the weight w that the forward pass uses; under PyTorch's
spectral or weight norm that is the effective weight, with its norm held constant. Under a norm of one's own it is
the raw weight, and its gradient goes through the norm. A generator has no loss of its own: its gradient comes
through a discriminator, and ``loss_fn`` says which one and by which loss. A closure ``loss_fn(network)`` yields
one scalar loss per batch, the same ones each time it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ganprune.core.modes import eval_mode, setting
from ganprune.masks.weights import WeightSlot, prunable_slots
from ganprune.scores.registry import register_score, warn_of_idle

LossFn = Callable[[nn.Module], Iterable[Tensor]]


@contextmanager
def scored_weights(network: nn.Module, protect: Iterable[str] = ()) -> Iterator[dict[str, Tensor]]:
    """The weights that the forward pass uses inside the block, by name, all requiring gradients.

    Plain weights are the parameters themselves. Where a parametrisation or an older norm hook makes the
    weight, a leaf with the same values stands in for it, so that the gradient is that of the effective
    weight. Afterwards flags, hooks and all buffers (batch-norm statistics, spectral vectors) are as before.
    """
    slots = prunable_slots(network, protect)
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    with ExitStack() as stack:
        leaves = {key: stack.enter_context(_leaf(slot)) for key, slot in slots.items()}
        try:
            yield leaves
        finally:
            with torch.no_grad():
                for buffer, saved in buffers:
                    buffer.copy_(saved)


@contextmanager
def _leaf(slot: WeightSlot) -> Iterator[Tensor]:
    if slot.kind == "plain":
        with setting((slot.raw, "requires_grad", True)):
            yield slot.raw
        return
    leaf = slot.effective().clone().requires_grad_(True)
    if slot.kind == "parametrized":
        with slot.owner.register_forward_hook(lambda *_: leaf):  # removed at the end of the block
            yield leaf
        return
    hooks, usual = dict(slot.layer._forward_pre_hooks), slot.layer.__dict__.get("weight")
    for number, hook in hooks.items():
        if getattr(hook, "name", None) == "weight":
            del slot.layer._forward_pre_hooks[number]
    slot.layer.__dict__["weight"] = leaf
    try:
        yield leaf
    finally:
        slot.layer.__dict__["weight"] = usual
        slot.layer._forward_pre_hooks.clear()
        slot.layer._forward_pre_hooks.update(hooks)


def losses_of(network: nn.Module, loss_fn: LossFn) -> Iterator[Tensor]:
    """The losses of a closure, checked; random numbers are the same in each pass.

    Raises:
        TypeError: if ``loss_fn`` is no such closure.
        ValueError: if it yields nothing, or something that is no scalar with a gradient.
    """
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be a function of the network that yields losses, got {type(loss_fn).__name__}"
        )
    torch.manual_seed(torch.initial_seed())
    yielded = loss_fn(network)
    losses = iter([yielded] if isinstance(yielded, Tensor) else yielded)
    count = 0
    try:
        while (loss := next(losses, None)) is not None:
            count += 1
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"loss_fn must yield scalar losses that depend on the network, got {got}")
            yield loss.sum()
    finally:
        if isinstance(losses, Generator):
            losses.close()  # it may hold another network frozen
    if not count:
        raise ValueError("loss_fn must yield at least one loss, got none")


def gradients_of(
    loss: Tensor, weights: Mapping[str, Tensor], create_graph: bool = False
) -> list[Tensor | None]:
    """The gradient of a scalar by each weight; None where the scalar does not depend on it."""
    return list(
        torch.autograd.grad(loss, list(weights.values()), allow_unused=True, create_graph=create_graph)
    )


def _check_used(used: Mapping[str, bool]) -> None:
    if not any(used.values()):
        raise ValueError("loss_fn must use the network that it is given; no prunable weight has a gradient")
    warn_of_idle([key for key, seen in used.items() if not seen], "the loss")


def _sum_terms(
    network: nn.Module,
    loss_fn: LossFn,
    weights: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    term: Callable[[Tensor, Tensor], Tensor],
) -> tuple[dict[str, Tensor], int]:
    """Σ over batches of term(g, w), by weight; and the number of batches."""
    sums = {key: torch.zeros_like(value) for key, value in values.items()}
    used, count = dict.fromkeys(weights, False), 0
    for loss in losses_of(network, loss_fn):
        count += 1
        for key, gradient in zip(weights, gradients_of(loss, weights), strict=True):
            if gradient is not None:
                sums[key] += term(_precise(gradient), values[key])
                used[key] = True
    _check_used(used)
    return sums, count


def _accumulate(
    network: nn.Module, loss_fn: LossFn, protect: Iterable[str], term: Callable[[Tensor, Tensor], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Σ over batches of term(g, w); the weights; the number of batches."""
    with torch.enable_grad(), scored_weights(network, protect) as weights:
        values = {key: _precise(weight.detach()) for key, weight in weights.items()}
        sums, count = _sum_terms(network, loss_fn, weights, values, term)
        return sums, {key: value.clone() for key, value in values.items()}, count


def _precise(tensor: Tensor) -> Tensor:
    """At least float32: squares of half-precision gradients underflow."""
    return tensor.float() if tensor.element_size() < 4 else tensor


@register_score("snip", needs=("loss_fn",))
def snip(network: nn.Module, loss_fn: LossFn, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``|Σ g| · |w|``, the sum over batches: the size of the loss's first-order change if w were removed.

    Lee et al. 2019, "SNIP: single-shot network pruning based on connection sensitivity", equation 4 (without
    the normalisation, which changes no order). Meant for initialisation. The network is scored in its present
    mode: batch norm in training mode uses the statistics of the batch, which at initialisation are the only
    ones there are.
    """
    sums, weights, _ = _accumulate(network, loss_fn, protect, lambda g, w: g)
    return {key: (total * weights[key]).abs() for key, total in sums.items()}


@register_score("taylor", needs=("loss_fn",))
def taylor(network: nn.Module, loss_fn: LossFn, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``Σ (g w)²`` over batches: the squared first-order change of the loss if w were removed.

    Molchanov et al. 2019, "Importance estimation for neural network pruning", equation 8. The square is
    inside the sum: batches whose gradients cancel still count. Scored in the network's present mode.
    """
    return _accumulate(network, loss_fn, protect, lambda g, w: (g * w).square())[0]


@register_score("squared-gradient", needs=("loss_fn",))
def squared_gradient(network: nn.Module, loss_fn: LossFn, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``½ h w²`` with ``h = E g²`` per sample: a proxy to optimal brain damage.

    OBD (LeCun et al. 1990) has the diagonal of the Hessian in the place of h. For the negative
    log-likelihood of samples from the model itself the two have the same expectation. A generator's loss is the
    likelihood of the label "real", which is never drawn from the discriminator's model, so here it is a proxy and no
    more (Kunstner et al. 2019).

    Each loss that ``loss_fn`` yields counts as one sample: use ``batch_size=1``. (With larger batches the
    mean gradient is squared, which is smaller.) The network is in evaluation mode, as batch statistics of one
    sample mean nothing.
    """
    with eval_mode(network):
        sums, weights, count = _accumulate(network, loss_fn, protect, lambda g, w: g.square())
    return {key: 0.5 * total / count * weights[key].square() for key, total in sums.items()}


@register_score("grasp", needs=("loss_fn",))
def grasp(network: nn.Module, loss_fn: LossFn, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``w ⊙ H g``; the smallest are pruned, which are the largest of −w ⊙ H g.

    Wang et al. 2020, "Picking winning tickets before training by preserving gradient flow", equation 8.
    Removing w changes ‖g‖² by about −2 w (H g), so what is kept is what gradient flow needs. H and g are
    those of the mean loss over all batches; the product H g comes from differentiating ⟨g, constant⟩, without
    the matrix. The paper's temperature divides logits, so it belongs into ``loss_fn``. Costs two passes; both
    must see the same batches.
    """
    with torch.enable_grad(), scored_weights(network, protect) as weights:
        values = {key: _precise(weight.detach()) for key, weight in weights.items()}
        total, count = _sum_terms(network, loss_fn, weights, values, lambda g, w: g)
        product = {key: torch.zeros_like(value) for key, value in values.items()}
        for loss in losses_of(network, loss_fn):
            gradients = zip(total.values(), gradients_of(loss, weights, create_graph=True), strict=True)
            inner = torch.stack(
                [(_precise(g) * constant / count).sum() for constant, g in gradients if g is not None]
            )
            if inner.requires_grad:  # a loss without curvature has a product of zero
                for key, part in zip(weights, gradients_of(inner.sum(), weights), strict=True):
                    if part is not None:
                        product[key] += _precise(part)
        return {key: value * product[key] / count for key, value in values.items()}
