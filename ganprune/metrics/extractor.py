"""The extractor: a trained classifier that gives features and classes; where it lies and how it is made."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganprune.core.device import as_device
from ganprune.core.files import cache_dir, replacing
from ganprune.core.modes import full_precision
from ganprune.core.tensors import hash_weights
from ganprune.data.splits import ImageData, Split
from ganprune.metrics.classifier import (
    FEATURES,
    ClassifierConfig,
    DigitClassifier,
    ImageClassifier,
    accuracy,
    train_classifier,
)

DIGIT_CLASSIFIER_FILE = "digit_classifier.safetensors"


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
        "hash": hash_weights(network),
        "features": f"{FEATURES} activations of the penultimate layer, after ReLU",
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
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
    if hash_weights(network) != metadata.get("hash"):
        raise ValueError(
            f"the weights in {path} have hash {hash_weights(network)}, stored is {metadata.get('hash')}"
        )
    return network.to(as_device(device)).eval().requires_grad_(False), metadata


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

    A trained extractor is cached as a file under ``cache_dir()`` and loaded from there the next
    time; in one process it is loaded once per device.

    Args:
        data: The data set, or one of its splits.
        device: Where to put the extractor; default the best device present.
        config: How to train an extractor that is not cached yet (not for MNIST).
        progress: Show a progress bar while training.

    Returns:
        The extractor with its name and hash.
    """
    target = as_device(device)
    dataset = data.dataset if isinstance(data, Split) else data.name
    path, name = digit_classifier_path(), f"{dataset}-cnn{FEATURES}"
    if dataset != "mnist":
        data = data.siblings() if isinstance(data, Split) else data
        config = config or ClassifierConfig(epochs=6, rotation=0.0, flip=True)
        recipe = json.dumps([asdict(config), list(data.image_shape), data.num_classes, len(data.train)])
        key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
        path = cache_dir() / "extractors" / f"{dataset}-{key}.safetensors"
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
