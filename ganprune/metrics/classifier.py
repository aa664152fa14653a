"""The feature extractor behind digit-FID: a small classifier, its training and its storage.

Inception features say little about handwritten digits, so quality is measured in the penultimate layer of a
classifier trained on the train split of the same data set. For MNIST the weights ship with the package
(``load_digit_classifier``); for other data sets a classifier of the same shape is trained once and cached
(``load_extractor``).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganprune import runtime
from ganprune.checks import check_integer
from ganprune.data import ImageData, Split

FEATURES = 128
DIGIT_CLASSIFIER_FILE = "digit_classifier.safetensors"

__all__ = [
    "ClassifierConfig",
    "DigitClassifier",
    "Extractor",
    "ImageClassifier",
    "accuracy",
    "load_classifier",
    "load_digit_classifier",
    "load_extractor",
    "save_classifier",
    "train_classifier",
    "weights_hash",
]


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


@dataclass(frozen=True)
class Extractor:
    """A classifier used as feature extractor, with a name that pins its weights.

    Args:
        network: The classifier, in eval mode, float32, without gradients, as ``inference_copy`` gives it.
        name: Data set and architecture, such as ``"mnist-cnn128"``.
        hash: First twelve hexadecimal digits of the SHA-256 of the weights.
        metadata: What is stored beside the weights (accuracy, seed, command, versions).
    """

    network: ImageClassifier
    name: str
    hash: str
    metadata: Mapping[str, str]

    @property
    def label(self) -> str:
        """Name and hash in one word: ``name@hash``."""
        return f"{self.name}@{self.hash}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 128) and predicted classes (N,) of float images in [-1, 1], always in full float32."""
        device = next(self.network.parameters()).device
        images = images.to(device=device, dtype=torch.float32, memory_format=torch.channels_last)
        with full_precision(device):
            features = self.network.features(images)
            return features, self.network.output(features).argmax(dim=1)


def inference_copy(network: ImageClassifier) -> ImageClassifier:
    """A copy for inference: no gradients, channels last, batch normalisation folded into the convolutions.

    ReLU comes after pooling, which gives the same numbers from a quarter of the work.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    layers: list[nn.Module] = []
    for layer in copied.stages:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = layers[-1]
            assert isinstance(convolution, nn.Conv2d)
            layers[-1] = fuse_conv_bn_eval(convolution, layer)
        elif isinstance(layer, nn.MaxPool2d) and isinstance(layers[-1], nn.ReLU):
            layers[-1:] = [layer, nn.ReLU(inplace=True)]
        else:
            layers.append(layer)
    copied.stages = nn.Sequential(*layers)
    return copied.to(memory_format=torch.channels_last)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast and TF32 convolutions off, so that features do not depend on the caller's settings."""
    with (
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield


def weights_hash(network: nn.Module) -> str:
    """First twelve hexadecimal digits of the SHA-256 over names, types, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{values.dtype}|{tuple(values.shape)}|".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


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
    progress: bool = True,
) -> ImageClassifier:
    """Train a classifier on the train split alone.

    Args:
        data: The data set; only ``data.train`` is read.
        config: How to train; the default suits MNIST.
        device: Where to train; default the best device present.
        progress: Show a progress bar on standard error.

    Returns:
        The trained classifier in eval mode, float32, without gradients, on ``device``.
    """
    config = config or ClassifierConfig()
    target = runtime.as_device(device)
    train = data.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        digits = tuple(data.image_shape) == (1, 28, 28) and data.num_classes == 10
        network = DigitClassifier() if digits else ImageClassifier(data.image_shape, data.num_classes)
    network.to(target).to(memory_format=torch.channels_last).train()
    half = runtime.best_precision(target) == "bfloat16"
    images, labels = train.images.to(target), train.labels.to(target)
    steps_per_epoch = max(1, len(labels) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps)
    order = torch.empty(0, dtype=torch.int64)
    bar = runtime.progress(steps, f"classifier of {data.name}") if progress else None
    for step in range(steps):
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0:
            shuffle = runtime.seeded(runtime.step_seed(config.seed, epoch, "classifier order"))
            order = torch.randperm(len(labels), generator=shuffle).to(target)
        chosen = order[position * config.batch_size : (position + 1) * config.batch_size]
        batch = images[chosen].float() / 127.5 - 1
        noise = runtime.seeded(runtime.step_seed(config.seed, step, "classifier distortion"))
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
    with runtime.eval_mode(network), full_precision(device):
        for start in range(0, len(split), batch_size):
            images = split.float_images(start, start + batch_size).to(device)
            truth = split.labels[start : start + batch_size].to(device)
            right += int((network(images).argmax(dim=1) == truth).sum())
    return right / len(split)


def save_classifier(
    path: str | Path, network: ImageClassifier, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a classifier to a safetensors file, whole or not at all.

    Args:
        path: Where to write.
        network: The classifier.
        metadata: Further facts to store, text to text.

    Returns:
        The path written.
    """
    stored = {
        **(metadata or {}),
        "image_shape": json.dumps(list(network.image_shape)),
        "num_classes": str(network.num_classes),
        "hash": weights_hash(network),
        "features": f"{FEATURES} activations of the penultimate layer, after ReLU",
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with runtime.replacing(path) as temporary:
        save_file(tensors, temporary, metadata=stored)
    return Path(path)


def load_classifier(
    path: str | Path, device: torch.device | str | None = None
) -> tuple[ImageClassifier, dict]:
    """Read a classifier from a safetensors file (no pickle, so loading runs no code from the file).

    Args:
        path: The file.
        device: Where to put the network; default the best device present.

    Returns:
        The classifier (eval mode, float32, without gradients) and the metadata stored beside it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is not a classifier, or its weights differ from the stored hash.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no classifier file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shape = tuple(json.loads(metadata["image_shape"]))
        classes = int(metadata["num_classes"])
        digits = shape == (1, 28, 28) and classes == 10
        network = DigitClassifier() if digits else ImageClassifier(shape, classes)
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or is not a classifier: {error}") from error
    if weights_hash(network) != metadata.get("hash"):
        raise ValueError(
            f"the weights in {path} have hash {weights_hash(network)}, stored is {metadata.get('hash')}"
        )
    return network.to(runtime.as_device(device)).eval().requires_grad_(False), metadata


def digit_classifier_path() -> Path:
    """Where the shipped digit classifier lies."""
    return Path(__file__).parents[1] / "assets" / DIGIT_CLASSIFIER_FILE


def load_digit_classifier(device: torch.device | str | None = None) -> DigitClassifier:
    """The digit classifier that ships with the package, ready to extract features.

    Args:
        device: Where to put it; default the best device present.

    Returns:
        A fresh copy in eval mode, float32, without gradients.
    """
    network, _ = load_classifier(digit_classifier_path(), device)
    if not isinstance(network, DigitClassifier):
        raise ValueError(f"{digit_classifier_path()} does not hold a digit classifier")
    return network


_extractors: dict[tuple[str, str], Extractor] = {}


def load_extractor(
    data: ImageData | Split,
    device: torch.device | str | None = None,
    config: ClassifierConfig | None = None,
    progress: bool = True,
) -> Extractor:
    """The feature extractor of a data set: the shipped one for MNIST, else one trained on its train split.

    A trained extractor is cached as a file under ``runtime.cache_dir()`` and loaded from there the next
    time; in one process it is loaded once per device.

    Args:
        data: The data set, or one of its splits.
        device: Where to put the extractor; default the best device present.
        config: How to train an extractor that is not cached yet (not for MNIST).
        progress: Show a progress bar while training.

    Returns:
        The extractor with its name and hash.
    """
    target = runtime.as_device(device)
    dataset = data.dataset if isinstance(data, Split) else data.name
    path, name = digit_classifier_path(), f"{dataset}-cnn{FEATURES}"
    if dataset != "mnist":
        data = data.siblings() if isinstance(data, Split) else data
        config = config or ClassifierConfig(epochs=6, rotation=0.0, flip=True)
        recipe = json.dumps([asdict(config), list(data.image_shape), data.num_classes, len(data.train)])
        key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
        path = runtime.cache_dir() / "extractors" / f"{dataset}-{key}.safetensors"
    known = _extractors.get((str(path), str(target)))
    if known is None:
        if isinstance(data, ImageData) and dataset != "mnist" and not path.is_file():
            network = train_classifier(data, config, target, progress)
            metadata = {
                "dataset": dataset,
                "config": json.dumps(asdict(config or ClassifierConfig())),
                "validation_accuracy": f"{accuracy(network, data.validation):.4f}",
                "torch": torch.__version__,
            }
            save_classifier(path, network, metadata)
        network, stored = load_classifier(path, target)
        known = Extractor(inference_copy(network), name, stored["hash"], stored)
        _extractors[(str(path), str(target))] = known
    return known
