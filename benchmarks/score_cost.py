"""What scores by gradients cost, over the forward and backward passes that they cannot do without."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import ganprune as gp
from benchmarks.record import Row
from benchmarks.timing import compare

MINUTES = 2


def passes(network: nn.Module, loss_fn: Callable[[nn.Module], Iterator[Tensor]]) -> None:
    """One forward and backward pass per batch: what SNIP and Taylor need."""
    weights = list(gp.prunable_weights(network).values())
    for loss in loss_fn(network):
        torch.autograd.grad(loss, weights)


def double_passes(network: nn.Module, loss_fn: Callable[[nn.Module], Iterator[Tensor]]) -> None:
    """What GraSP needs: the gradient of all batches, then per batch its product with the Hessian."""
    weights = list(gp.prunable_weights(network).values())
    total = [torch.zeros_like(weight) for weight in weights]
    for loss in loss_fn(network):
        torch._foreach_add_(total, torch.autograd.grad(loss, weights))
    for loss in loss_fn(network):
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        inner = sum((gradient * fixed).sum() for gradient, fixed in zip(gradients, total, strict=True))
        torch.autograd.grad(inner, weights)


def measure(quick: bool) -> Iterator[Row]:
    """SNIP, Taylor and GraSP on eight batches of 64."""
    gan = gp.dcgan(width=4 if quick else 32)
    batches, rounds = (1, 2) if quick else (8, 15)
    loss_fn = gp.generator_loss(gan, batches=batches)
    network = gan.generator
    for name, needed in (("snip", passes), ("taylor", passes), ("grasp", double_passes)):
        arms = {
            "score": lambda n=name: gp.score(network, n, loss_fn=loss_fn),
            "passes": lambda f=needed: f(network, loss_fn),
        }
        times = compare(arms, rounds, device=gan.device)
        ratio = times.ratio("score", "passes")
        details = {"low": ratio.low, "high": ratio.high, "seconds": times.median("score")}
        yield Row(f"score {name} over the passes it needs", ratio.value, "×", at_most=1.3, details=details)
