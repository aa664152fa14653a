"""One training step of the package against the plain PyTorch loop: same networks and batch, side by side."""

import dataclasses
from collections.abc import Callable, Iterator

from torch.utils.data import TensorDataset

import ganprune as gp
from benchmarks import plain
from benchmarks.record import Row
from benchmarks.timing import compare

MINUTES = 3
BATCH_SIZE = 64
LATENT_DIM = 64


def ours(width: int, data: gp.data.ImageData) -> Callable[[int], None]:
    """A function that trains for so many steps with the package's loop as it comes."""
    config = gp.TrainConfig(steps=1, batch_size=BATCH_SIZE, loss="non-saturating", decay_from=1.0)
    state = gp.TrainState(gp.dcgan(data.image_shape, width, LATENT_DIM), config)

    def run(steps: int) -> None:
        state.config = dataclasses.replace(state.config, steps=state.step + steps)
        gp.train(state, data.train)

    return run


def theirs(width: int, data: gp.data.ImageData, from_pictures: bool) -> Callable[[int], None]:
    """The same for the plain loop, with a data set of pictures or of ready tensors."""
    split = data.train
    tensors = (
        plain.ImageDataset(split)
        if from_pictures
        else TensorDataset(split.float_images().cpu(), split.labels.cpu())
    )
    gan = gp.dcgan(data.image_shape, width, LATENT_DIM)
    stepping = plain.steps(gan, plain.loader(tensors, BATCH_SIZE), LATENT_DIM)

    def run(steps: int) -> None:
        for _ in range(steps):
            next(stepping)

    return run


def measure(quick: bool) -> Iterator[Row]:
    """Ratios at two widths, against a data set of pictures (which has the bar) and one of ready tensors."""
    data = gp.mnist()
    steps, rounds = (1, 2) if quick else (10, 30)
    for width in (4,) if quick else (32, 16):
        arms = {
            "ours": ours(width, data),
            "pictures": theirs(width, data, True),
            "tensors": theirs(width, data, False),
        }
        times = compare(
            {k: lambda run=v: run(steps) for k, v in arms.items()}, rounds, device=data.train.device
        )
        for arm, words in (
            ("pictures", "torchvision-like data set"),
            ("tensors", "data set of ready tensors"),
        ):
            ratio = times.ratio(arm, "ours")
            yield Row(
                f"plain training step over ours, width {width}, {words}",
                ratio.value,
                "×",
                at_least=1.65 if arm == "pictures" and width == 32 else None,
                details={
                    "low": ratio.low,
                    "high": ratio.high,
                    "ours_ms": 1e3 * times.median("ours") / steps,
                    "plain_ms": 1e3 * times.median(arm) / steps,
                },
            )
