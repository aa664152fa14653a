"""The digit classifier that ships, and the training and storage of others."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ganprune import metrics
from ganprune.core import tensors as classifier
from ganprune.data.sources import mnist
from ganprune.data.splits import ImageData, Split
from ganprune.experiments import digit_classifier


@pytest.fixture(scope="module")
def data() -> ImageData:
    """MNIST on the CPU."""
    return mnist(device="cpu")


def toy_data(name: str = "toy", side: int = 12, channels: int = 3, count: int = 192) -> ImageData:
    """Two classes that differ in which half of the image is bright."""
    splits = {}
    for number, part in enumerate(("train", "validation", "test")):
        generator = torch.Generator().manual_seed(number)
        labels = torch.arange(count) % 2
        images = torch.randint(0, 100, (count, channels, side, side), generator=generator, dtype=torch.uint8)
        images[labels == 1, :, : side // 2] += 150
        splits[part] = Split(part, images, labels, name)
    data = ImageData(name, splits["train"], splits["validation"], splits["test"], num_classes=2)
    for split in splits.values():
        object.__setattr__(split, "parent", data)
    return data


def test_the_shipped_classifier_is_accurate_on_images_it_never_saw(data: ImageData) -> None:
    network = metrics.load_digit_classifier("cpu")
    measured = metrics.accuracy(network, data.test)
    assert measured >= 0.992
    _, metadata = metrics.load_classifier(classifier.digit_classifier_path(), "cpu")
    assert float(metadata["test_accuracy"]) == pytest.approx(measured, abs=2e-4)
    assert metadata["trained_on"] == f"train split, {len(data.train)} images"
    assert metadata["command"] == digit_classifier.COMMAND
    assert classifier.digit_classifier_path().stat().st_size < 2_000_000


def test_it_is_frozen_and_its_hash_pins_its_weights(data: ImageData) -> None:
    network = metrics.load_digit_classifier("cpu")
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    extractor = metrics.load_extractor(data, "cpu")
    assert extractor.hash == metrics.weights_hash(network)
    assert extractor.label == f"mnist-cnn128@{extractor.hash}"
    assert metrics.load_extractor(data.test, "cpu") is extractor
    with torch.no_grad():
        network.output.bias[0] += 1e-3
    assert metrics.weights_hash(network) != extractor.hash


def test_features_are_the_penultimate_activations(data: ImageData) -> None:
    network = metrics.load_digit_classifier("cpu")
    images = data.validation.float_images(0, 20)
    features = network.features(images)
    assert features.shape == (20, 128)
    assert features.min() >= 0
    assert torch.equal(network(images), network.output(features))
    extracted, predicted = metrics.load_extractor(data, "cpu")(images)
    assert torch.allclose(extracted, features, atol=1e-4, rtol=1e-4)  # batch normalisation is folded there
    assert torch.equal(predicted, network(images).argmax(dim=1))
    assert extracted.dtype == torch.float32
    assert torch.equal(extracted, metrics.load_extractor(data, "cpu")(images)[0])


def test_training_learns_is_repeatable_and_leaves_the_random_state_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GANPRUNE_PRECISION", "float32")
    config = metrics.ClassifierConfig(epochs=3, batch_size=32, shift=1.0, flip=True)
    data = toy_data()
    random = torch.get_rng_state()
    network = metrics.train_classifier(data, config, "cpu", progress=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert metrics.accuracy(network, data.test) > 0.9
    assert network.image_shape == (3, 12, 12)
    again = metrics.train_classifier(data, config, "cpu", progress=False)
    assert metrics.weights_hash(again) == metrics.weights_hash(network)
    other = metrics.train_classifier(
        data, metrics.ClassifierConfig(epochs=3, batch_size=32, seed=1), "cpu", False
    )
    assert metrics.weights_hash(other) != metrics.weights_hash(network)


def test_distortion_is_nothing_at_strength_zero_and_bounded_otherwise(data: ImageData) -> None:
    images = data.train.float_images(0, 8)
    still = metrics.ClassifierConfig(rotation=0.0, shift=0.0, zoom=0.0)
    generator = torch.Generator().manual_seed(0)
    assert torch.allclose(classifier.distort(images, still, generator), images, atol=1e-4)
    moved = classifier.distort(images, metrics.ClassifierConfig(), generator)
    assert moved.shape == images.shape
    assert moved.min() >= -1.001
    assert moved.max() <= 1.001
    assert not torch.allclose(moved, images, atol=0.1)


def test_other_data_trains_its_own_extractor_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier, "_extractors", {})
    data = toy_data("toy-once")
    config = metrics.ClassifierConfig(epochs=2, batch_size=32, flip=False)
    extractor = metrics.load_extractor(data.validation, "cpu", config, progress=False)
    assert extractor.label == f"toy-once-cnn128@{extractor.hash}"
    assert json.loads(extractor.metadata["config"])["epochs"] == 2
    monkeypatch.setattr(classifier, "train_classifier", lambda *_: pytest.fail("trained twice"))
    assert metrics.load_extractor(data, "cpu", config) is extractor
    monkeypatch.setattr(classifier, "_extractors", {})
    assert metrics.load_extractor(data, "cpu", config).hash == extractor.hash
    report = metrics.evaluate_images(data.test.float_images(), data.validation, extractor=extractor)
    assert report.digit_fid is report.digit_fid_floor is None
    assert report.fid == pytest.approx(metrics.floor(data, extractor), abs=1e-6)
    assert report.extractor == extractor.label
    assert len(report.class_histogram) == 2


def test_the_training_command_writes_a_file_with_its_provenance(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = toy_data("mnist", side=28, channels=1, count=64)
    monkeypatch.setattr(digit_classifier.data, "mnist", lambda device=None: tiny)
    path = tmp_path / "made" / "digits.safetensors"
    assert digit_classifier.main(["--out", str(path), "--epochs", "1", "--device", "cpu"]) == 0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    wanted = {"command", "config", "hash", "python", "test_accuracy", "torch", "validation_accuracy"}
    assert wanted <= set(metadata)
    assert json.loads(metadata["config"])["seed"] == 0
    assert not list(path.parent.glob("*.partial"))


def test_files_that_are_no_classifier_are_refused(tmp_path, data: ImageData) -> None:
    with pytest.raises(FileNotFoundError, match="no classifier file at"):
        metrics.load_classifier(tmp_path / "absent.safetensors")

    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was executed",)

    pickled = tmp_path / "pickle.safetensors"
    pickled.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is damaged or is not a classifier"):
        metrics.load_classifier(pickled)

    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(ValueError, match="is damaged or is not a classifier"):
        metrics.load_classifier(other)

    whole = classifier.digit_classifier_path().read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is damaged or is not a classifier"):
        metrics.load_classifier(cut)

    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="have hash"):
        metrics.load_classifier(changed)


def test_bad_arguments_are_named(data: ImageData) -> None:
    with pytest.raises(ValueError, match="image_shape must be"):
        metrics.ImageClassifier((1, 4, 28), 10)
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        metrics.ImageClassifier((1, 28, 28), 1)
    with pytest.raises(ValueError, match="epochs must be an integer of at least 1"):
        metrics.ClassifierConfig(epochs=0)
    with pytest.raises(ValueError, match=r"images must have shape \(N, 1, >=28, >=28\)"):
        metrics.load_digit_classifier("cpu").features(torch.zeros(2, 3, 28, 28))
