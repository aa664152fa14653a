"""Data sets other than MNIST, walked to the end: from files or tensors to every metric, inside training too."""

from __future__ import annotations

import contextlib
import gzip
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from small_data import join, thin_all

import ganprune as gp
from ganprune import metrics
from ganprune.data.splits import ImageData, Split

BRIEF = metrics.ClassifierConfig(epochs=1, batch_size=32, rotation=0.0, flip=True)
MODES = [contextlib.nullcontext, torch.no_grad, torch.inference_mode]
MNIST_FILES = Path(gp.__file__).parent / "assets" / "mnist"


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """MNIST's files under Fashion-MNIST's names, read as Fashion-MNIST is, and thinned."""
    root = tmp_path_factory.mktemp("root")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in MNIST_FILES.glob("*-ubyte.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return thin_all(gp.data.fashion_mnist(root, device="cpu", download=False), 200)


@pytest.fixture(scope="module")
def photographs() -> ImageData:
    """Three-channel images of 32 × 32 pixels in three classes, which differ in which channel is bright."""
    splits = {}
    for number, name in enumerate(("train", "validation", "test")):
        generator = torch.Generator().manual_seed(number)
        labels = torch.arange(150) % 3
        images = torch.randint(0, 120, (150, 3, 32, 32), generator=generator, dtype=torch.uint8)
        images[torch.arange(150), labels] += 120
        splits[name] = Split(name, images, labels, "photographs")
    return join(ImageData("photographs", **splits, num_classes=3))


@pytest.fixture(params=["fashion", "photographs"])
def data(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageData:
    """One of the two, with an empty cache folder."""
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("mode", MODES)
def test_a_data_set_is_measured_to_the_end(
    mode: Callable[[], AbstractContextManager], data: ImageData
) -> None:
    gan = gp.dcgan(data.image_shape, width=4, latent_dim=8, device="cpu")
    with mode():
        path = metrics.prepare_extractor(data, "cpu", BRIEF, show_progress=False)
        extractor = metrics.load_extractor(data.validation, "cpu", BRIEF)
        report = metrics.evaluate(gan, data, samples=30, extractor=extractor)
        assert report.fid_floor == metrics.floor(data, extractor)
    assert metrics.load_classifier(path, "cpu")[1]["hash"] == extractor.hash
    assert report.extractor == f"{data.name}-cnn128@{extractor.hash}"
    assert (report.dataset, report.split, report.reference_samples) == (
        data.name,
        "validation",
        len(data.validation),
    )
    row = report.as_dict()
    absent = {"fid_floor_note", "digit_fid", "digit_fid_floor"}
    assert {name for name, value in row.items() if value is None} == absent
    assert len(report.class_histogram) == data.num_classes
    assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    assert 0 < report.fid_floor < report.fid


@pytest.mark.parametrize("mode", MODES)
def test_training_with_the_evaluate_callback_reaches_its_end(
    mode: Callable[[], AbstractContextManager], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = metrics.extractor.ClassifierConfig
    monkeypatch.setattr(
        metrics.extractor, "ClassifierConfig", lambda **options: recipe(**(options | {"epochs": 1}))
    )
    gan = gp.dcgan(data.image_shape, width=4, latent_dim=8, device="cpu")
    gp.prune(gan, 0.5)
    state = gp.TrainState(gan, gp.TrainConfig(steps=2, batch_size=8, precision="float32"))
    evaluate = gp.Evaluate(data.validation, samples=20)
    with mode(), pytest.warns(UserWarning, match="prepare_extractor does it ahead"):
        gp.train(state, data.train, [gp.every(1, evaluate)], show_progress=False)
    assert [row["step"] for row in evaluate.rows] == [1, 2]
    assert all(math.isfinite(row["fid"]) and row["dataset"] == data.name for row in evaluate.rows)
    gan.masks.check()
