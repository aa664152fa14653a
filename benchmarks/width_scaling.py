"""How the cost of every pruning operation grows with the width of the network."""

import math
from collections.abc import Callable, Iterator, Mapping

import torch

import ganprune as gp
from benchmarks.record import Row
from benchmarks.timing import compare
from ganprune.channels.compaction import compact
from ganprune.channels.shrinking import shrink_channels
from ganprune.dynamic.regrowth import rigl_update

MINUTES = 6
WIDTHS = (16, 32, 64, 128)
SPARSITY = 0.9


def operations(gan: gp.GAN) -> dict[str, Callable[[], object]]:
    """What the package does to a generator, by name; each call leaves the network as it was."""
    network = gan.generator
    latents = gp.sample_latents(64, 64)
    loss_fn = gp.generator_loss(gan, batches=1)
    scores = gp.score(network, "magnitude")
    mask = gp.allocate(scores, sparsity=SPARSITY)
    pruned = gp.GAN(gan.generator_ema, gan.discriminator).generator_ema
    gp.prune(pruned, sparsity=SPARSITY)
    given = {
        **{name: {"loss_fn": loss_fn} for name in ("snip", "taylor", "grasp", "squared-gradient")},
        "wanda": {"inputs": latents},
        **{name: {"inputs": latents, "protect": ("layers.deconv4",)} for name in ("apoz", "mean-activation")},
        "synflow": {"sparsity": SPARSITY, "rounds": 1},
    }
    cheap = ("magnitude", "random")
    found: dict[str, Callable[[], object]] = {
        f"score {name}": lambda n=name: gp.score(network, n, **given.get(n, {})) for name in (*cheap, *given)
    }
    found |= {
        f"allocate {name}": lambda n=name: gp.allocate(scores, sparsity=SPARSITY, allocation=n)
        for name in ("global", "uniform", "erk", "lamp", "per-output")
    }
    divisible = gp.score(network, "magnitude", protect=["layers.deconv4"])
    found["allocate 2:4"] = lambda: gp.allocate(divisible, allocation="2:4")
    found["apply a mask"] = lambda: gp.apply_mask(pruned, mask)
    update = {key: torch.rand_like(weight) for key, weight in gp.prunable_weights(network).items()}
    found["RigL update"] = lambda: rigl_update(scores, update, mask, 0.3)
    found["recalibrate batch norm on one batch"] = lambda: gp.recalibrate_batchnorm(
        pruned, batches=1, batch_size=64
    )
    found["shrink channels"] = lambda: shrink_channels(network, 0.5)
    found["compact"] = lambda: compact(pruned, mask=mask)
    return found


def training(gan: gp.GAN) -> Callable[[], object]:
    """One masked training step, by the package's loop."""
    gp.prune(gan, sparsity=SPARSITY)
    images = torch.rand(64, 1, 28, 28) * 2 - 1

    class Fixed:
        def batch(self, batch_size: int, seed: int, step: int) -> torch.Tensor:
            return images

    config = gp.TrainConfig(steps=1, batch_size=64, precision="float32")
    return lambda: gp.train(gp.TrainState(gan, config), Fixed(), show_progress=False)


def exponent(parameters: Mapping[int, int], seconds: Mapping[int, float]) -> float:
    """The power of the parameters that the time grows with: least squares on logarithms."""
    x = [math.log(parameters[width]) for width in seconds]
    y = [math.log(time) for time in seconds.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def measure(quick: bool) -> Iterator[Row]:
    """One row per operation: the exponent of its growth from width 16 to 128, with the seconds behind it."""
    widths, rounds = ((2, 4), 2) if quick else (WIDTHS, 7)
    parameters: dict[int, int] = {}
    arms: dict[str, Callable[[], object]] = {}
    names: list[str] = []
    for width in widths:
        gan = gp.dcgan(width=width, device="cpu")
        parameters[width] = sum(parameter.numel() for parameter in gan.generator.parameters())
        found = {**operations(gan), "masked training step": training(gp.dcgan(width=width, device="cpu"))}
        names = list(found)
        arms |= {f"{name} @ {width}": call for name, call in found.items()}
    for name in names:
        times = compare({f"{width}": arms[f"{name} @ {width}"] for width in widths}, rounds, warmup=1)
        seconds = {width: times.median(f"{width}") for width in widths}
        yield Row(
            f"growth with the generator's parameters: {name}",
            exponent(parameters, seconds),
            "power",
            at_most=1.0,
            details={
                "parameters": [parameters[width] for width in widths],
                "milliseconds": [1e3 * seconds[width] for width in widths],
            },
        )
