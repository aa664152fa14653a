"""The digit classifier that ships, and the training and storage of others."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from safetensors.torch import save_file
from small_data import join

import ganprune as gp
from ganprune import metrics
from ganprune.core.tensors import CheckpointError, hash_weights
from ganprune.data.sources import mnist
from ganprune.data.splits import ImageData, Split
from ganprune.experiments import digit_classifier
from ganprune.metrics import extractor as extractors
from ganprune.metrics.classifier import distort


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
    return join(ImageData(name, **splits, num_classes=2))


def test_the_shipped_classifier_is_accurate_on_images_it_never_saw(data: ImageData) -> None:
    network, metadata = metrics.load_classifier(metrics.digit_classifier_path(), "cpu")
    measured = metrics.accuracy(network, data.test)
    assert measured >= 0.992
    assert float(metadata["test_accuracy"]) == pytest.approx(measured, abs=2e-4)
    assert metadata["trained_on"] == f"train split, {len(data.train)} images"
    assert metadata["command"] == digit_classifier.COMMAND
    assert metrics.digit_classifier_path().stat().st_size < 2_000_000


def test_it_is_frozen_and_its_hash_pins_its_weights(data: ImageData) -> None:
    network, _ = metrics.load_classifier(metrics.digit_classifier_path(), "cpu")
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    extractor = metrics.load_extractor(data, "cpu")
    assert extractor.hash == hash_weights(network)
    assert extractor.label == f"mnist-cnn128@{extractor.hash}"
    assert metrics.load_extractor(data.test, "cpu") is extractor
    with torch.no_grad():
        network.output.bias[0] += 1e-3
    assert hash_weights(network) != extractor.hash


def test_features_are_the_penultimate_activations(data: ImageData) -> None:
    network, _ = metrics.load_classifier(metrics.digit_classifier_path(), "cpu")
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


def test_training_learns_is_repeatable_and_leaves_the_random_state_alone() -> None:
    config = metrics.ClassifierConfig(epochs=3, batch_size=32, shift=1.0, flip=True)
    data = toy_data()
    random = torch.get_rng_state()
    network = metrics.train_classifier(data, config, "cpu", show_progress=False)
    assert torch.equal(torch.get_rng_state(), random)
    assert metrics.accuracy(network, data.test) > 0.9
    assert network.image_shape == (3, 12, 12)
    again = metrics.train_classifier(data, config, "cpu", show_progress=False)
    assert hash_weights(again) == hash_weights(network)
    other = metrics.train_classifier(
        data, metrics.ClassifierConfig(epochs=3, batch_size=32, seed=1), "cpu", False
    )
    assert hash_weights(other) != hash_weights(network)


def test_distortion_is_nothing_at_strength_zero_and_bounded_otherwise(data: ImageData) -> None:
    images = data.train.float_images(0, 8)
    still = metrics.ClassifierConfig(rotation=0.0, shift=0.0, zoom=0.0)
    generator = torch.Generator().manual_seed(0)
    assert torch.allclose(distort(images, still, generator), images, atol=1e-4)
    moved = distort(images, metrics.ClassifierConfig(), generator)
    assert moved.shape == images.shape
    assert moved.min() >= -1.001
    assert moved.max() <= 1.001
    assert not torch.allclose(moved, images, atol=0.1)


@pytest.fixture
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """An empty cache folder, inside another one so that what leaves it is seen."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GANPRUNE_CACHE", str(folder))
    return folder


BRIEF = metrics.ClassifierConfig(epochs=1, batch_size=32, rotation=0.0)


def test_other_data_trains_its_own_extractor_once(cache, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy_data("toy-once")
    config = metrics.ClassifierConfig(epochs=2, batch_size=32, flip=False)
    said: list[str] = []
    extractor = metrics.load_extractor(
        data.validation, "cpu", config, show_progress=False, announce=said.append
    )
    assert extractor.label == f"toy-once-cnn128@{extractor.hash}"
    assert extractor.metadata["config"]["epochs"] == 2
    assert len(said) == 1 and "12 steps" in said[0] and "toy-once" in said[0]
    monkeypatch.setattr(extractors, "train_classifier", lambda *_: pytest.fail("trained twice"))
    assert metrics.load_extractor(data, "cpu", config) is extractor
    path = metrics.prepare_extractor(data, "cpu", config)
    assert path.is_relative_to(cache)
    assert hash_weights(metrics.load_classifier(path, "cpu")[0]) == extractor.hash
    report = metrics.evaluate_images(data.test.float_images(), data.validation, extractor=extractor)
    assert report.digit_fid is report.digit_fid_floor is None
    assert report.fid == pytest.approx(metrics.floor(data, extractor), abs=1e-6)
    assert report.extractor == extractor.label
    assert len(report.class_histogram) == 2


def test_a_damaged_extractor_is_refused_with_the_remedy(cache) -> None:
    data = toy_data("toy-damaged")
    path = metrics.prepare_extractor(data, "cpu", BRIEF, show_progress=False)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="delete it to train it anew"):
        metrics.load_extractor(data, "cpu", BRIEF)
    path.unlink()
    assert (
        metrics.load_extractor(data, "cpu", BRIEF, show_progress=False, announce=len).name
        == "toy-damaged-cnn128"
    )


def test_an_evaluation_that_must_train_says_so(cache) -> None:
    data = toy_data("toy-first")
    with pytest.warns(
        UserWarning, match=r"training the feature extractor of toy-first on cpu: .* steps, about"
    ):
        metrics.load_extractor(data, "cpu", BRIEF, show_progress=False)


def test_an_extractor_belongs_to_images_labels_and_configuration(cache) -> None:
    data = toy_data("toy-same")
    path = metrics.prepare_extractor(data, "cpu", BRIEF, show_progress=False)
    assert metrics.prepare_extractor(toy_data("toy-same"), "cpu", BRIEF) == path
    train = data.train
    changed = [
        (dataclasses.replace(train, images=255 - train.images), BRIEF),
        (dataclasses.replace(train, labels=1 - train.labels), BRIEF),
        (dataclasses.replace(train, images=train.images[:96], labels=train.labels[:96]), BRIEF),
        (train, dataclasses.replace(BRIEF, learning_rate=1e-3)),
        (train, dataclasses.replace(BRIEF, seed=1)),
    ]
    found = {path}
    for split, config in changed:
        other = dataclasses.replace(data, train=split)
        found.add(metrics.prepare_extractor(other, "cpu", config, show_progress=False))
    assert len(found) == 1 + len(changed)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", "a/../../x", "C:\\x", "é \n", "x" * 300, ""])
def test_no_name_of_a_data_set_leaves_the_cache(name: str, cache) -> None:
    path = metrics.prepare_extractor(toy_data(name, count=64), "cpu", BRIEF, show_progress=False)
    assert path.is_file()
    assert path.resolve().parent == (cache / "extractors").resolve()
    assert [each.name for each in cache.parent.iterdir()] == ["cache"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_the_same_extractor(
    mode, cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy_data("toy-modes")
    plain = hash_weights(metrics.train_classifier(data, BRIEF, "cpu", show_progress=False))
    with mode():
        extractor = metrics.load_extractor(data, "cpu", BRIEF, show_progress=False, announce=len)
    assert extractor.hash == plain
    extractor(data.test.float_images())
    with torch.enable_grad():  # features may be differentiated with respect to the images
        images = data.test.float_images(0, 4).requires_grad_()
        extractor.network.features(images).sum().backward()
        assert images.grad is not None


def test_images_that_are_much_larger_are_resized_and_padded_ones_cropped() -> None:
    network = metrics.ImageClassifier((1, 16, 16), 2).eval()
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1.0)
    assert torch.equal(network.features(padded), network.features(images))
    larger = images.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    small = torch.nn.functional.interpolate(larger, (16, 16), mode="bilinear", antialias=True)
    assert torch.allclose(network.features(larger), network.features(small), atol=1e-5)


def test_what_cannot_train_a_classifier_is_refused_before_the_work() -> None:
    data = toy_data()
    wrong = dataclasses.replace(data.train, labels=data.train.labels + 1)
    with pytest.raises(ValueError, match="labels from 0 to 1, got 1 to 2"):
        metrics.train_classifier(dataclasses.replace(data, train=wrong), BRIEF, "cpu")
    with pytest.raises(ValueError, match="made by hand and belongs to no data set"):
        metrics.prepare_extractor(dataclasses.replace(data.train, parent=None))


def test_the_training_command_writes_a_file_with_its_provenance(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = toy_data("mnist", side=28, channels=1, count=64)
    monkeypatch.setattr(digit_classifier, "mnist", lambda device=None: tiny)
    path = tmp_path / "made" / "digits.safetensors"
    assert digit_classifier.main(["--out", str(path), "--epochs", "1", "--device", "cpu"]) == 0
    network, metadata = metrics.load_classifier(path, "cpu")
    wanted = {"command", "config", "hash", "python", "test_accuracy", "torch", "validation_accuracy"}
    assert wanted <= set(metadata)
    assert metadata["config"]["seed"] == 0
    assert metadata["hash"] == hash_weights(network)
    assert list(path.parent.iterdir()) == [path]


def test_files_that_are_no_classifier_are_refused(tmp_path, data: ImageData) -> None:
    with pytest.raises(CheckpointError, match="expected a file at"):
        metrics.load_classifier(tmp_path / "absent.safetensors")

    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was executed",)

    pickled = tmp_path / "pickle.safetensors"
    pickled.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="is not a whole safetensors file|not written by ganprune"):
        metrics.load_classifier(pickled)

    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(CheckpointError, match="is not a whole safetensors file|not written by ganprune"):
        metrics.load_classifier(other)

    gp.save(other, gp.mlp_gan(hidden=(4,), device="cpu"))
    with pytest.raises(CheckpointError, match="is not a classifier"):
        metrics.load_classifier(other)

    whole = metrics.digit_classifier_path().read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file|not written by ganprune"):
        metrics.load_classifier(cut)

    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="have hash"):
        metrics.load_classifier(changed)


def test_bad_arguments_are_named(data: ImageData) -> None:
    with pytest.raises(ValueError, match="image_shape must be"):
        metrics.ImageClassifier((1, 4, 28), 10)
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 2, got 1"):
        metrics.ImageClassifier((1, 28, 28), 1)
    with pytest.raises(ValueError, match="epochs must be an integer of at least 1"):
        metrics.ClassifierConfig(epochs=0)
    with pytest.raises(ValueError, match=r"images must have shape \(N, 1, >=28, >=28\)"):
        metrics.ImageClassifier((1, 28, 28), 10).features(torch.zeros(2, 3, 28, 28))
