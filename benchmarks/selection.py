"""Global selection over ten million weights, against one ``torch.topk`` on the same data."""

from collections.abc import Iterator

import torch

import ganprune as gp
from benchmarks.record import Row
from benchmarks.timing import compare

MINUTES = 1
LAYERS = 10


def measure(quick: bool) -> Iterator[Row]:
    """Ratios of times at three sparsities; topk looks for the weights that are kept."""
    per_layer = 1_000 if quick else 1_000_000
    rounds = 2 if quick else 15
    device = gp.core.default_device()
    random = torch.Generator().manual_seed(0)
    scores = {f"layer{n}.weight": torch.rand(per_layer, generator=random).to(device) for n in range(LAYERS)}
    flat = torch.cat(list(scores.values()))
    for sparsity in (0.5, 0.8, 0.95):
        keep = round((1 - sparsity) * flat.numel())
        arms = {
            "allocate": lambda s=sparsity: gp.allocate(scores, sparsity=s),
            "topk": lambda k=keep: torch.topk(flat, k),
            "unsorted topk": lambda k=keep: torch.topk(flat, k, sorted=False),
        }
        times = compare(arms, rounds, warmup=1, device=device)
        ratio = times.ratio("allocate", "topk")
        yield Row(
            f"global selection among {flat.numel():,} weights over one torch.topk, sparsity {sparsity:.0%}",
            ratio.value,
            "×",
            at_most=1.5,
            details={
                "low": ratio.low,
                "high": ratio.high,
                "over_unsorted_topk": times.ratio("allocate", "unsorted topk").value,
                "seconds": times.median("allocate"),
            },
        )
