"""The extractor: a trained classifier that gives features and classes; where it lies and how it is made.

MNIST's ships with the package. Any other data set gets one that is trained on its train split and kept as a file in
the cache folder, either ahead by ``prepare_extractor`` or when an evaluation first needs it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganprune.core.device import as_device
from ganprune.core.files import cache_dir
from ganprune.core.modes import full_precision
from ganprune.core.tensors import CheckpointError, hash_weights, read_safetensors, write_safetensors
from ganprune.data.splits import DataError, ImageData, Split
from ganprune.metrics.classifier import (
    FEATURES,
    ClassifierConfig,
    ImageClassifier,
    accuracy,
    train_classifier,
)

DIGIT_CLASSIFIER_FILE = "digit_classifier.safetensors"
SHIPPED_DATASET = "mnist"
RECIPE_VERSION = 2
"""Part of a cached extractor's key: raised with each change of the classifier or of its training."""


@dataclass(frozen=True)
class Extractor:
    """A classifier used as feature extractor, with a name that pins its weights.

    Attributes:
        network: the classifier, in evaluation mode, float32, without gradients, as :func:`inference_copy` gives it.
        name: data set and architecture, such as ``"mnist-cnn128"``.
        hash: first twelve hexadecimal digits of the SHA-256 of the weights.
        metadata: what is stored beside the weights (accuracy, configuration, versions).
    """

    network: ImageClassifier
    name: str
    hash: str
    metadata: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Name and hash in one word: ``name@hash``."""
        return f"{self.name}@{self.hash}"

    @property
    def device(self) -> torch.device:
        """Where the classifier lies."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 128) and predicted classes (N,) of float images in [-1, 1], always in full float32."""
        images = images.to(device=self.device, dtype=torch.float32, memory_format=torch.channels_last)
        with full_precision(self.device):
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
    path: str | Path, network: ImageClassifier, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Writes a classifier to a safetensors file, whole or not at all.

    Args:
        path: where to write.
        network: the classifier.
        metadata: further facts to store, as JSON holds them.

    Returns:
        The path written.
    """
    stored = {
        **(metadata or {}),
        "image_shape": list(network.image_shape),
        "num_classes": network.num_classes,
        "hash": hash_weights(network),
        "features": f"{FEATURES} activations of the penultimate layer, after ReLU",
    }
    write_safetensors(path, network.state_dict(), stored)
    return Path(path)


def load_classifier(
    path: str | Path, device: torch.device | str | None = None
) -> tuple[ImageClassifier, dict[str, Any]]:
    """Reads a classifier from a safetensors file (no pickle, so loading runs no code from the file).

    Args:
        path: the file.
        device: where to put the network; default the best device present.

    Returns:
        The classifier (evaluation mode, float32, without gradients) and the metadata stored beside it.

    Raises:
        CheckpointError: if there is no such file, or it is damaged, is not a classifier, or holds weights that differ
            from the stored hash.
    """
    tensors, metadata = read_safetensors(path)
    try:
        shape = tuple(metadata["image_shape"])
        with torch.inference_mode(False):
            network = ImageClassifier(shape, metadata["num_classes"])
            network.load_state_dict(tensors)
            network = network.to(as_device(device)).eval().requires_grad_(False)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a classifier: {error}") from error
    if hash_weights(network) != metadata.get("hash"):
        raise CheckpointError(
            f"{path} is damaged: its weights have hash {hash_weights(network)}, stored is {metadata.get('hash')}"
        )
    return network, metadata


def digit_classifier_path() -> Path:
    """Where the shipped digit classifier lies."""
    return Path(__file__).parents[1] / "assets" / DIGIT_CLASSIFIER_FILE


def prepare_extractor(
    data: ImageData | Split,
    device: torch.device | str | None = None,
    config: ClassifierConfig | None = None,
    show_progress: bool = True,
    announce: Callable[[str], Any] | None = None,
) -> Path:
    """Trains the feature extractor of a data set ahead of its first evaluation; nothing to do if it is there.

    Args:
        data: the data set, or one of its splits; the extractor is trained on its train split, whichever is given.
        device: where to train; default the best device present.
        config: how to train. The default suits small photographs: six epochs, mirrored images, no rotation.
        show_progress: show a progress bar on standard error.
        announce: called once with a sentence that says how long the training takes, after its first few steps.

    Returns:
        The file of the extractor: for MNIST the one that ships with the package, else one in the cache folder. Its
        name has a hash of the train split's images and labels, of the configuration and of the recipe's version.

    Raises:
        ValueError: if a split is given that belongs to no data set, or the train split has labels that are no classes.
        DataError: if the data set has fewer than two classes.
    """
    name = data.dataset if isinstance(data, Split) else data.name
    if name == SHIPPED_DATASET:
        return digit_classifier_path()
    data = data.siblings() if isinstance(data, Split) else data
    if data.num_classes < 2:
        raise DataError(
            f"{data.name} has no classes, by which a feature extractor could be trained: put the images of each class "
            "into a sub-folder of their own; or give an extractor that was trained on other images of as many channels "
            "(extractor=gp.metrics.read_extractor(file), --extractor FILE); or leave evaluation out (--samples 0)"
        )
    config = config or ClassifierConfig(epochs=6, rotation=0.0, flip=True)
    path = _cached_path(data, config)
    if not path.is_file():
        network = train_classifier(data, config, device, show_progress, announce)
        metadata = {
            "dataset": name,
            "trained_on": f"train split, {len(data.train)} images",
            "config": asdict(config),
            "validation_accuracy": round(accuracy(network, data.validation), 4),
            "torch": torch.__version__,
        }
        save_classifier(path, network, metadata)
    return path


def _cached_path(data: ImageData, config: ClassifierConfig) -> Path:
    """The file of a data set's extractor: its name says which data set, and a hash of everything that shapes it."""
    recipe = [RECIPE_VERSION, asdict(config), data.name, list(data.image_shape), data.num_classes]
    key = hashlib.sha256(json.dumps(recipe).encode())
    for tensor in (data.train.images, data.train.labels):
        key.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    words = re.sub(r"[^A-Za-z0-9_-]+", "-", data.name).strip("-")[:40] or "data"
    return cache_dir() / "extractors" / f"{words}-{key.hexdigest()[:16]}.safetensors"


_extractors: dict[tuple[str, str], Extractor] = {}


def load_extractor(
    data: ImageData | Split,
    device: torch.device | str | None = None,
    config: ClassifierConfig | None = None,
    show_progress: bool = True,
    announce: Callable[[str], Any] | None = None,
) -> Extractor:
    """The feature extractor of a data set: the shipped one for MNIST, else one trained on its train split.

    It is trained when no extractor of these very images is in the cache folder, as :func:`prepare_extractor` does
    ahead. In one process each is loaded once per device.

    Args:
        data: the data set, or one of its splits.
        device: where to put the extractor; default the best device present.
        config: as for :func:`prepare_extractor`.
        show_progress: show a progress bar if it is trained.
        announce: as for :func:`prepare_extractor`; default a warning.

    Returns:
        The extractor with its name and hash.

    Raises:
        ValueError: as for :func:`prepare_extractor`.
        CheckpointError: if the file is damaged.
    """
    target = as_device(device)
    path = prepare_extractor(data, target, config, show_progress, announce or _warn)
    known = _extractors.get((str(path), str(target)))
    if known is None:
        dataset = data.dataset if isinstance(data, Split) else data.name
        try:
            network, metadata = load_classifier(path, target)
        except CheckpointError as error:
            remedy = (
                "install the package again" if dataset == SHIPPED_DATASET else "delete it to train it anew"
            )
            raise CheckpointError(f"{error}; {remedy}") from error
        known = _as_extractor(network, f"{dataset}-cnn{FEATURES}", metadata)
        _extractors[(str(path), str(target))] = known
    return known


def read_extractor(path: str | Path, device: torch.device | str | None = None) -> Extractor:
    """The feature extractor in a file, to measure other images with than those that it was trained on.

    Figures from it can be compared with each other and with no others. Images of data without classes need one; the
    nearer its own images are, the more its features see.

    Args:
        path: what :func:`prepare_extractor` wrote ("out" of ``ganprune extractor``); its images must have as many
            channels, and be no larger than those to be measured.
        device: where to put it; default the best device present.

    Raises:
        CheckpointError: if there is no such file, or it is damaged or no classifier.
    """
    network, metadata = load_classifier(path, device)
    return _as_extractor(network, f"{metadata.get('dataset', 'own')}-cnn{FEATURES}", metadata)


def _as_extractor(network: ImageClassifier, name: str, metadata: dict[str, Any]) -> Extractor:
    with torch.inference_mode(False):
        return Extractor(inference_copy(network), name, metadata["hash"], metadata)


def _warn(cost: str) -> None:
    warnings.warn(
        f"{cost}; ganprune.metrics.prepare_extractor does it ahead of the first evaluation",
        UserWarning,
        stacklevel=2,
    )
