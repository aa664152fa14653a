"""What keeping a mask costs per training step, with ``torch.nn.utils.prune`` measured beside it."""

import functools
from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import softplus
from torch.optim import SGD, Adam, AdamW, Optimizer

import ganprune as gp
from benchmarks.record import Row
from benchmarks.timing import compare

MINUTES = 3
SPARSITY = 0.8
BATCH_SIZE = 64
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": functools.partial(SGD, lr=1e-4),
    "Adam": functools.partial(Adam, lr=1e-4, betas=(0.5, 0.999), fused=True),
    "AdamW": functools.partial(AdamW, lr=1e-4, betas=(0.5, 0.999), weight_decay=0.01, fused=True),
}


def training_step(
    mode: str, optimizer: Callable[..., Optimizer], width: int, data: gp.data.ImageData, channels_last: bool
) -> Callable[[], None]:
    """A function that makes one step of both networks, the generator dense, masked, or pruned by torch.

    ``torch.nn.utils.prune`` fails on weights in channels-last layout, so there is a contiguous one too.
    """
    gan = gp.dcgan(data.image_shape, width)
    generator, discriminator, device = gan.generator, gan.discriminator, gan.device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    reduced = gp.core.best_precision(device) == "bfloat16"
    mask = gp.prune(generator, sparsity=SPARSITY)
    if mode == "torch":
        gp.masks.to_torch_prune(generator, mask)
    generator.to(memory_format=layout)
    discriminator.to(memory_format=layout)
    optimizer_g = optimizer(list(generator.parameters()))
    optimizer_d = optimizer(list(discriminator.parameters()))
    if mode == "masked":
        gp.keep_mask(generator, mask, optimizer_g)
    real = data.train.batch(BATCH_SIZE, 0, 0).contiguous(memory_format=layout)
    z = gp.sample_latents(BATCH_SIZE, 64, 0, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            fake = generator(z)
            real_logits, fake_logits = (
                discriminator(torch.cat([real, fake.detach().float()])).float().chunk(2)
            )
        optimizer_d.zero_grad()
        (softplus(-real_logits).mean() + softplus(fake_logits).mean()).backward()
        optimizer_d.step()
        with gp.core.frozen(discriminator), torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            logits = discriminator(fake)
        optimizer_g.zero_grad()
        softplus(-logits.float()).mean().backward()
        optimizer_g.step()

    return step


def measure(quick: bool) -> Iterator[Row]:
    """Ratios for SGD, Adam and AdamW, at 80% sparsity."""
    data = gp.mnist()
    width, rounds = (4, 2) if quick else (32, 300)
    for name, optimizer in OPTIMIZERS.items():
        arms = {
            "dense": training_step("dense", optimizer, width, data, True),
            "masked": training_step("masked", optimizer, width, data, True),
            "dense contiguous": training_step("dense", optimizer, width, data, False),
            "torch": training_step("torch", optimizer, width, data, False),
        }
        times = compare(arms, rounds, device=data.train.device)
        for over, under, words, bar in (
            ("masked", "dense", "masked step over dense step", 1.02),
            ("torch", "dense contiguous", "the same with torch.nn.utils.prune", None),
        ):
            ratio = times.ratio(over, under)
            details = {"low": ratio.low, "high": ratio.high, "dense_ms": 1e3 * times.median(under)}
            yield Row(f"{words}, {name}, width {width}", ratio.value, "×", at_most=bar, details=details)
