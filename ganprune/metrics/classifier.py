"""The classifier whose features the metrics use: what it is and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ganprune.core.checks import check_integer
from ganprune.core.device import as_device, best_precision
from ganprune.core.modes import eval_mode, full_precision
from ganprune.core.progress import progress
from ganprune.core.random import seeded, step_seed
from ganprune.data.splits import ImageData, Split

FEATURES = 128


class ImageClassifier(nn.Module):
    """A plain convolutional classifier whose penultimate layer is the feature space of the fidelity metrics.

    Three convolutions (5x5 to 32 channels, 3x3 to 64, 3x3 to 128), each followed by batch normalisation,
    ReLU and 2x2 max pooling; then ``Linear -> ReLU`` gives the 128 features and a last ``Linear`` the
    logits. Images larger than ``image_shape`` are cropped at the centre, so that MNIST padded to 32x32 is
    read by the same extractor.

    Args:
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes, at least 2.

    Raises:
        ValueError: If ``image_shape`` is not three positive integers with sides of at least 8 pixels, or
            ``num_classes`` is below 2.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        shape = tuple(int(side) for side in image_shape)
        if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 8:
            raise ValueError(
                f"image_shape must be (channels, height, width) with sides of at least 8, got {image_shape!r}"
            )
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes!r}")
        self.image_shape = shape
        self.num_classes = int(num_classes)
        stages: list[nn.Module] = []
        for inputs, outputs, kernel in ((shape[0], 32, 5), (32, 64, 3), (64, 128, 3)):
            stages += [
                nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.stages = nn.Sequential(*stages)
        self.penultimate = nn.Linear(128 * (shape[1] // 8) * (shape[2] // 8), FEATURES)
        self.output = nn.Linear(FEATURES, self.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Activations of the penultimate layer, after its ReLU.

        Args:
            images: Float images (N, C, H, W) in [-1, 1], at least as large as ``image_shape``.

        Returns:
            Non-negative features (N, 128).

        Raises:
            ValueError: If the images have another number of channels or are too small.
        """
        channels, height, width = self.image_shape
        if (
            images.dim() != 4
            or images.shape[1] != channels
            or images.shape[2] < height
            or images.shape[3] < width
        ):
            raise ValueError(
                f"images must have shape (N, {channels}, >={height}, >={width}), got {tuple(images.shape)}"
            )
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        images = images[:, :, top : top + height, left : left + width]
        return functional.relu(self.penultimate(self.stages(images).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (N, num_classes) of float images (N, C, H, W) in [-1, 1]."""
        return self.output(self.features(images))


class DigitClassifier(ImageClassifier):
    """The classifier of MNIST: one channel, 28x28 pixels, ten classes."""

    def __init__(self) -> None:
        super().__init__((1, 28, 28), 10)


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained: AdamW, one learning-rate cycle, small random distortions.

    Args:
        epochs: Passes over the train split.
        batch_size: Images per step.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: AdamW's decoupled weight decay.
        rotation: Largest random rotation, in degrees.
        shift: Largest random shift, in pixels.
        zoom: Largest random relative change of size.
        flip: Mirror images left to right with probability one half (never for digits).
        seed: Seed of initialisation, order and distortions.
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
        for name, least in (("epochs", 1), ("batch_size", 2)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), least))


def distort(images: Tensor, config: ClassifierConfig, generator: torch.Generator) -> Tensor:
    """Rotate, shift, scale and (if asked) mirror each image at random; pixels from outside are -1.

    Args:
        images: Float images (N, C, H, W) in [-1, 1].
        config: Gives the largest rotation, shift and zoom.
        generator: CPU generator of the random numbers.

    Returns:
        Distorted images of the same shape.
    """
    count, _, height, width = images.shape
    uniform = torch.rand(5, count, generator=generator) * 2 - 1
    angle = torch.deg2rad(uniform[0] * config.rotation)
    scale = 1 + uniform[1] * config.zoom
    mirror = torch.where(uniform[4] < 0, -1.0, 1.0) if config.flip else torch.ones(count)
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
) -> ImageClassifier:
    """Train a classifier on the train split alone.

    Args:
        data: The data set; only ``data.train`` is read.
        config: How to train; the default suits MNIST.
        device: Where to train; default the best device present.
        show_progress: Show a progress bar on standard error.

    Returns:
        The trained classifier in eval mode, float32, without gradients, on ``device``.
    """
    config = config or ClassifierConfig()
    target = as_device(device)
    train = data.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        digits = tuple(data.image_shape) == (1, 28, 28) and data.num_classes == 10
        network = DigitClassifier() if digits else ImageClassifier(data.image_shape, data.num_classes)
    network.to(target).to(memory_format=torch.channels_last).train()
    half = best_precision(target) == "bfloat16"
    images, labels = train.images.to(target), train.labels.to(target)
    steps_per_epoch = max(1, len(labels) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
    order = torch.empty(0, dtype=torch.int64)
    bar = progress(steps, f"classifier of {data.name}") if show_progress else None
    for step in range(steps):
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0:
            shuffle = seeded(step_seed(config.seed, epoch, "classifier order"))
            order = torch.randperm(len(labels), generator=shuffle).to(target)
        chosen = order[position * config.batch_size : (position + 1) * config.batch_size]
        batch = images[chosen].float() / 127.5 - 1
        noise = seeded(step_seed(config.seed, step, "classifier distortion"))
        batch = distort(batch, config, noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(target.type, dtype=torch.bfloat16, enabled=half):
            loss = functional.cross_entropy(network(batch).float(), labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if bar is not None:
            bar.update()
    if bar is not None:
        bar.close()
    return network.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


@torch.no_grad()
def accuracy(network: ImageClassifier, split: Split, batch_size: int = 100) -> float:
    """Share of a split's images that a classifier names rightly, in eval mode and float32."""
    device = next(network.parameters()).device
    right = 0
    with eval_mode(network), full_precision(device):
        for start in range(0, len(split), batch_size):
            images = split.float_images(start, start + batch_size).to(device)
            truth = split.labels[start : start + batch_size].to(device)
            right += int((network(images).argmax(dim=1) == truth).sum())
    return right / len(split)
