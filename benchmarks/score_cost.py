"""What scores by gradients cost, over the forward and backward passes that they cannot do without."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import ganprune as gp
from benchmarks.record import Row
from benchmarks.timing import compare

MINUTES = 2
SPARSITY = 0.99
ROUNDS_OF_SYNFLOW = 100


def passes(model: nn.Module, loss_fn: Callable[[nn.Module], Iterator[Tensor]]) -> None:
    """One forward and backward pass per batch: what SNIP and Taylor need."""
    weights = list(gp.prunable_weights(model).values())
    for loss in loss_fn(model):
        torch.autograd.grad(loss, weights)


def double_passes(model: nn.Module, loss_fn: Callable[[nn.Module], Iterator[Tensor]]) -> None:
    """What GraSP needs: the gradient of all batches, then per batch its product with the Hessian."""
    weights = list(gp.prunable_weights(model).values())
    total = [torch.zeros_like(weight) for weight in weights]
    for loss in loss_fn(model):
        torch._foreach_add_(total, torch.autograd.grad(loss, weights))
    for loss in loss_fn(model):
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        inner = sum((gradient * fixed).sum() for gradient, fixed in zip(gradients, total, strict=True))
        torch.autograd.grad(inner, weights)


def double_precision_passes(model: nn.Module, count: int) -> None:
    """So many forward and backward passes of one sample in float64."""
    network = copy.deepcopy(model).double().eval()
    weights = list(gp.prunable_weights(network).values())
    sample = torch.ones(1, 64, dtype=torch.float64, device=weights[0].device)
    for _ in range(count):
        torch.autograd.grad(network(sample).sum(), weights)


def measure(quick: bool) -> Iterator[Row]:
    """SNIP, Taylor and GraSP on eight batches of 64; SynFlow in 100 rounds."""
    gan = gp.dcgan(width=4 if quick else 32)
    batches, rounds, synflow_rounds = (1, 2, 3) if quick else (8, 15, ROUNDS_OF_SYNFLOW)
    loss_fn = gp.generator_loss(gan, batches=batches)
    model = gan.generator
    for name, needed in (("snip", passes), ("taylor", passes), ("grasp", double_passes)):
        arms = {
            "score": lambda n=name: gp.score(model, n, loss_fn=loss_fn),
            "passes": lambda f=needed: f(model, loss_fn),
        }
        times = compare(arms, rounds, device=gan.device)
        ratio = times.ratio("score", "passes")
        details = {"low": ratio.low, "high": ratio.high, "seconds": times.median("score")}
        yield Row(f"score {name} over the passes it needs", ratio.value, "×", at_most=1.3, details=details)
    arms = {
        "score": lambda: gp.score(model, "synflow", sparsity=SPARSITY, rounds=synflow_rounds),
        "passes": lambda: double_precision_passes(model, synflow_rounds),
    }
    times = compare(arms, 2 if quick else 25, warmup=1, device=gan.device)
    ratio = times.ratio("score", "passes")
    yield Row(
        f"score synflow, {synflow_rounds} rounds, over as many float64 passes",
        ratio.value,
        "×",
        at_most=1.5,
        details={"low": ratio.low, "high": ratio.high, "seconds": times.median("score")},
    )
