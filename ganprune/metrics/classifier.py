"""The classifier whose features the metrics use: what it is and how it is trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ganprune.core.checks import check_integer, check_number
from ganprune.core.device import as_device
from ganprune.core.modes import eval_mode, full_precision
from ganprune.core.progress import progress
from ganprune.core.random import keep_random_state, seeded, step_seed
from ganprune.data.splits import ImageData, Split

FEATURES = 128
BORDER = 4
"""Images larger by up to so many pixels are taken for padded ones, as ``mnist(image_size=32)`` makes them."""
_MEASURED_STEPS = 5


class ImageClassifier(nn.Module):
    """A plain convolutional classifier whose penultimate layer is the feature space of the fidelity metrics.

    Three convolutions (5x5 to 32 channels, 3x3 to 64, 3x3 to 128), each followed by batch normalisation, ReLU and
    2x2 max pooling; then ``Linear -> ReLU`` gives the 128 features and a last ``Linear`` the logits.

    Images larger than ``image_shape`` are read by one rule. If neither side is more than four pixels longer, the
    middle is cropped, so that MNIST padded to 32x32 is read as what it is. Otherwise the images are resized to
    ``image_shape`` (bilinear, with antialiasing).

    Args:
        image_shape: (channels, height, width) of the images.
        num_classes: number of classes, at least 2.

    Raises:
        ValueError: if ``image_shape`` is not three positive integers with sides of at least 8 pixels, or
            ``num_classes`` is below 2.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        shape = tuple(int(side) for side in image_shape)
        if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 8:
            raise ValueError(
                f"image_shape must be (channels, height, width) with sides of at least 8, got {image_shape!r}"
            )
        self.image_shape = shape
        self.num_classes = check_integer("num_classes", num_classes, 2)
        place: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}  # whatever the global defaults are
        stages: list[nn.Module] = []
        for inputs, outputs, kernel in ((shape[0], 32, 5), (32, 64, 3), (64, 128, 3)):
            stages += [
                nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **place),
                nn.BatchNorm2d(outputs, **place),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.stages = nn.Sequential(*stages)
        self.penultimate = nn.Linear(128 * (shape[1] // 8) * (shape[2] // 8), FEATURES, **place)
        self.output = nn.Linear(FEATURES, self.num_classes, **place)

    def features(self, images: Tensor) -> Tensor:
        """Activations of the penultimate layer, after its ReLU.

        Args:
            images: float images (N, C, H, W) in [-1, 1], at least as large as ``image_shape``.

        Returns:
            Non-negative features (N, 128).

        Raises:
            ValueError: if the images have another number of channels or are too small.
        """
        self.check_shape("images", tuple(images.shape))
        return functional.relu(self.penultimate(self.stages(self._fit(images)).flatten(1)))

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Does nothing if images of shape (N, C, H, W) can be read.

        Raises:
            ValueError: if they have another number of channels or are too small; ``name`` is theirs in the message.
        """
        channels, height, width = self.image_shape
        if len(shape) != 4 or shape[1] != channels or shape[2] < height or shape[3] < width:
            raise ValueError(f"{name} must have shape (N, {channels}, >={height}, >={width}), got {shape}")

    def _fit(self, images: Tensor) -> Tensor:
        """Crops or resizes images to ``image_shape``, by the rule above."""
        height, width = self.image_shape[1:]
        down, right = images.shape[2] - height, images.shape[3] - width
        if max(down, right) > BORDER:
            return functional.interpolate(
                images, (height, width), mode="bilinear", antialias=True, align_corners=False
            )
        return images[:, :, down // 2 : down // 2 + height, right // 2 : right // 2 + width]

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (N, num_classes) of float images (N, C, H, W) in [-1, 1]."""
        return self.output(self.features(images))


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained: AdamW, one learning-rate cycle, small random distortions.

    Attributes:
        epochs: passes over the train split.
        batch_size: images per step.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: AdamW's decoupled weight decay.
        rotation: largest random rotation, in degrees.
        shift: largest random shift, in pixels.
        zoom: largest random relative change of size, below 1.
        flip: mirror images left to right with probability one half (never for digits).
        seed: determines initialisation, order and distortions.

    Raises:
        ValueError: if a number is outside its range.
        TypeError: if it is not a number.
    """

    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    rotation: float = 10.0
    shift: float = 2.0
    zoom: float = 0.1
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("seed", 0)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), least))
        intervals = {"learning_rate": "(0, inf)", "weight_decay": "[0, inf)", "rotation": "[0, 180]"}
        for name, interval in (intervals | {"shift": "[0, inf)", "zoom": "[0, 1)"}).items():
            object.__setattr__(self, name, check_number(name, getattr(self, name), interval))
        object.__setattr__(self, "flip", bool(self.flip))

    def steps(self, images: int) -> int:
        """Number of optimiser steps for a train split of so many images."""
        return self.epochs * max(1, images // self.batch_size)


def distort(images: Tensor, config: ClassifierConfig, generator: torch.Generator) -> Tensor:
    """Rotate, shift, scale and (if asked) mirror each image at random; pixels from outside are -1.

    Args:
        images: float images (N, C, H, W) in [-1, 1].
        config: gives the largest rotation, shift and zoom.
        generator: CPU generator of the random numbers.

    Returns:
        Distorted images of the same shape.
    """
    count, _, height, width = images.shape
    uniform = torch.rand(5, count, generator=generator, dtype=torch.float32, device="cpu") * 2 - 1
    angle = torch.deg2rad(uniform[0] * config.rotation)
    scale = 1 + uniform[1] * config.zoom
    mirror = torch.ones_like(scale)
    if config.flip:
        mirror[uniform[4] < 0] = -1.0
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    across, down = uniform[2] * config.shift * 2 / width, uniform[3] * config.shift * 2 / height
    rows = torch.stack([cosine * mirror, -sine, across, sine * mirror, cosine, down], dim=1)
    theta = rows.view(count, 2, 3).to(images.device)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def train_classifier(
    data: ImageData,
    config: ClassifierConfig | None = None,
    device: torch.device | str | None = None,
    show_progress: bool = True,
    announce: Callable[[str], Any] | None = None,
) -> ImageClassifier:
    """Trains a classifier on the train split alone, in float32, so that one seed gives one result.

    Args:
        data: the data set; only ``data.train`` is read.
        config: how to train; the default suits MNIST.
        device: where to train; default the best device present.
        show_progress: show a progress bar on standard error.
        announce: called once, after the first few steps, with a sentence that says how many steps there are and
            roughly how many seconds they take.

    Returns:
        The trained classifier in evaluation mode, float32, without gradients, on ``device``.

    Raises:
        ValueError: if the labels of the train split are not classes of the data set.
    """
    config, target = config or ClassifierConfig(), as_device(device)
    _check_training_data(data)
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        with keep_random_state("cpu"):
            torch.manual_seed(config.seed)
            network = ImageClassifier(data.image_shape, data.num_classes)
        network.to(target).to(memory_format=torch.channels_last).train()
        with full_precision(target):
            _optimize(network, data, config, show_progress, announce)
    return network.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def _check_training_data(data: ImageData) -> None:
    labels = data.train.labels
    if int(labels.min()) < 0 or int(labels.max()) >= data.num_classes:
        raise ValueError(
            f"data must have labels from 0 to {data.num_classes - 1}, got {int(labels.min())} to {int(labels.max())}"
        )


def _optimize(
    network: ImageClassifier,
    data: ImageData,
    config: ClassifierConfig,
    show_progress: bool,
    announce: Callable[[str], Any] | None,
) -> None:
    """The training loop; each step draws its batch and its distortions from (seed, step)."""
    target = next(network.parameters()).device
    images, labels = data.train.images.to(target), data.train.labels.to(target)
    steps = config.steps(len(labels))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
    begin = time.perf_counter()
    with progress(steps, f"classifier of {data.name}", show=show_progress) as bar:
        for step in range(steps):
            epoch, position = divmod(step, steps // config.epochs)
            if position == 0:
                shuffle = seeded(step_seed(config.seed, epoch, "classifier order"))
                order = torch.randperm(len(labels), generator=shuffle, device="cpu").to(target)
            chosen = order[position * config.batch_size : (position + 1) * config.batch_size]
            batch = images[chosen].to(torch.float32) / 127.5 - 1
            noise = seeded(step_seed(config.seed, step, "classifier distortion"))
            batch = distort(batch, config, noise).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(network(batch), labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            if announce is not None and step + 1 == min(_MEASURED_STEPS, steps):
                seconds = (time.perf_counter() - begin) / (step + 1) * steps
                announce(_say_cost(data, target, steps, seconds))


def _say_cost(data: ImageData, device: torch.device, steps: int, seconds: float) -> str:
    length = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    return f"training the feature extractor of {data.name} on {device}: {steps:,} steps, about {length}"


@torch.no_grad()
def accuracy(network: ImageClassifier, split: Split, batch_size: int = 100) -> float:
    """Share of a split's images that a classifier names rightly, in evaluation mode and float32."""
    device = next(network.parameters()).device
    right = 0
    with eval_mode(network), full_precision(device):
        for start in range(0, len(split), batch_size):
            images = split.float_images(start, start + batch_size).to(device)
            truth = split.labels[start : start + batch_size].to(device)
            right += int((network(images).argmax(dim=1) == truth).sum())
    return right / len(split)
