"""Images of one's own: read as what they are, split by a seed, and walked to the end on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ganprune as gp
from ganprune.__main__ import main
from ganprune.data import DataError, ImageData, Split
from ganprune.data.folders import folder_of
from ganprune.metrics import evaluate, load_extractor, read_extractor

COLOURS = ("red", "green", "blue")


def write(folder: Path, count: int = 72, classes: bool = True, side: int = 40) -> Path:
    """Return a folder of noisy images in three colours, PNG and JPEG, of different shapes."""
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 90, (side + number % 3, side + number % 5, 3), dtype=np.uint8)
        pixels[..., number % 3] += 150
        into = folder / COLOURS[number % 3] if classes else folder
        into.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(into / f"{number:03}.{'png' if number % 2 else 'JPEG'}")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "colours")


def every_image(data: ImageData) -> list[bytes]:
    splits = (data.train, data.validation, data.test)
    return [image.numpy().tobytes() for split in splits for image in split.images]


def test_sub_folders_are_classes_and_no_image_is_in_two_splits(folder: Path) -> None:
    data = gp.data.image_folder(folder, size=28, device="cpu")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [58, 7, 7]
    assert data.num_classes == 3
    assert data.image_shape == (3, 28, 28)
    assert data.name == data.train.dataset == f"folder:{folder.as_posix()}"
    assert data.validation.siblings() is data
    for split in (data.train, data.validation, data.test):
        brightest = split.images.float().mean((2, 3)).argmax(1)
        assert torch.equal(brightest, torch.tensor([2, 1, 0])[split.labels])  # blue, green, red
    assert len(set(every_image(data))) == 72
    again, other = (gp.data.image_folder(folder, 28, seed=seed, device="cpu") for seed in (0, 3))
    assert torch.equal(data.train.images, again.train.images)
    assert sorted(every_image(data)) == sorted(every_image(other))
    assert not torch.equal(data.validation.images, other.validation.images)
    stored = gp.load_data(other.name, device="cpu", image_shape=(3, 28, 28))
    assert torch.equal(stored.validation.images, other.validation.images)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (40, 3), (128, 1)])
def test_sizes_and_colours(folder: Path, size: int, channels: int) -> None:
    data = gp.data.image_folder(folder, size, channels, device="cpu")
    assert data.image_shape == (channels, size, size)
    file = folder / "red" / "003.png"
    with Image.open(file) as image:
        expected = image.convert("L" if channels == 1 else "RGB")
        width, height = image.size
    rows = [split.images for split in (data.train, data.validation, data.test)]
    if (width, height) == (size, size):  # nothing to scale: the very pixels
        pixels = torch.from_numpy(np.array(expected)).permute(2, 0, 1)
        assert any((image == pixels).all() for images in rows for image in images)
    assert all(images.dtype == torch.uint8 and images.float().std() > 1 for images in rows)


def test_images_are_cropped_to_their_middle(tmp_path: Path) -> None:
    for number in range(60):
        pixels = np.zeros((30, 90), dtype=np.uint8)
        pixels[:, 30:60] = 200
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    data = gp.data.image_folder(tmp_path, 30, 1, device="cpu")
    assert data.num_classes == 1
    assert data.train.images.float().mean() > 190


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", 60)
    (folder / "red" / "cut.png").write_bytes((folder / "red" / "003.png").read_bytes()[:200])
    (folder / "blue" / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match="2 of 62 images cannot be read") as caught:
        gp.data.image_folder(folder, device="cpu")
    assert "text.jpg (UnidentifiedImageError" in str(caught.value)
    assert "cut.png" in str(caught.value)


@pytest.mark.parametrize("classes", [True, False])
def test_too_few_images_are_refused_with_the_number(tmp_path: Path, classes: bool) -> None:
    write(tmp_path / "a", 59, classes)
    with pytest.raises(DataError, match="must hold at least 60 images .*, got 59"):
        gp.data.image_folder(tmp_path / "a", device="cpu")


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image folder not found: expected a folder at"):
        gp.data.image_folder(tmp_path / "none", device="cpu")
    write(tmp_path / "both", 6, True)
    write(tmp_path / "both", 6, False)
    with pytest.raises(DataError, match="has 6 images beside the folders of classes blue, green, red"):
        gp.data.image_folder(tmp_path / "both", device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 27}, "size must be an integer of at least 28, got 27"),
        ({"size": 129}, "size must be an integer from 28 to 128, got 129"),
        ({"channels": 4}, "channels must be one of 1, 3, got 4"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_wrong_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gp.data.image_folder(".", **options)


def test_names_of_folders() -> None:
    assert folder_of("mnist") is None
    assert folder_of("folder:a/b") == ("a/b", 0)
    assert folder_of("folder:a?seed=7") == ("a", 7)
    for wrong in ("folder:", "folder:a?seed=x"):
        with pytest.raises(ValueError, match="data must be folder:DIR"):
            folder_of(wrong)
    with pytest.raises(ValueError, match="data must be one of mnist, fashion-mnist, cifar10, or folder:DIR"):
        gp.load_data("svhn")


def test_images_without_classes_take_an_extractor_of_other_images(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    plain = gp.data.image_folder(write(tmp_path / "plain", 60, classes=False), 32, device="cpu")
    gan = gp.dcgan((3, 32, 32), width=4, device="cpu")
    with pytest.raises(DataError, match="has no classes.*sub-folder.*--extractor FILE.*--samples 0"):
        evaluate(gan, plain, samples=20)
    path = gp.metrics.prepare_extractor(
        gp.data.image_folder(folder, 28, device="cpu"), "cpu", show_progress=False
    )
    extractor = read_extractor(path, "cpu")
    assert extractor.label == load_extractor(gp.data.image_folder(folder, 28, device="cpu"), "cpu").label
    report = evaluate(gan, plain, samples=20, extractor=extractor)
    assert report.extractor == extractor.label
    assert report.fid > report.fid_floor > 0
    assert len(report.class_histogram) == 3
    assert report.histogram_kl >= 0


def run(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    code = main([*map(str, words), "--device", "cpu", "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return json.loads(shown.out.splitlines()[-1]) | {"err": shown.err}


def test_a_folder_is_walked_to_the_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    name, size = f"folder:{folder.as_posix()}", ["--image-size", 64]
    brief = ["--batch-size", 4, "--samples", 8]
    row = run(capsys, "extractor", "--data", name, *size)
    assert "training the feature extractor" in row["err"]  # its cost is said
    assert row["data"] == name
    training = ["train", "--data", name, *size, "--width", 2, "--steps", 2, *brief, "--out", "a.safetensors"]
    trained = run(capsys, *training)
    gan = gp.load("a.safetensors", "cpu")  # as if written before these options were there
    for option in ("grey", "generator_weights_key", "discriminator_weights_key"):
        assert gan.metadata["request"].pop(option) is None
    gp.save("a.safetensors", gan)
    assert "will be replaced" not in run(capsys, *training)["err"]
    assert trained["fid"] > 0
    assert trained["extractor"] == row["extractor"]
    to = ["--checkpoint", "a.safetensors", "--sparsity", 0.5, "--steps", 1, "--out", "b.safetensors"]
    pruned = run(
        capsys, "prune", *to, *brief
    )  # the data are those of the checkpoint, in its generator's size
    assert (pruned["data"], pruned["sparsity"]) == (name, pytest.approx(0.5, abs=1e-3))
    measured = run(
        capsys, "evaluate", "--checkpoint", "b.safetensors", "--samples", 8, "--extractor", row["out"]
    )
    assert measured["fid"] == pytest.approx(pruned["fid"])
    run(capsys, "sample", "--real", "--data", name, *size, "--n", 4, "--out", "real.png")
    run(capsys, "sample", "--checkpoint", "b.safetensors", "--n", 4, "--out", "made.png")
    assert Image.open("made.png").size == Image.open("real.png").size
    for words, message in (
        (["--data", name, "--image-size", 32], "has images of shape (3, 32, 32), but the generator"),
        (["--data", "mnist", "--grey"], "argument --grey: is not used by --data mnist"),
        (["--data", "folder:"], "argument --data: must be folder:DIR"),
        (["--data", "svhn"], "argument --data: must be one of mnist, fashion-mnist, cifar10, or folder:DIR"),
    ):
        assert main(["evaluate", "--checkpoint", "b.safetensors", "--samples", "0", *map(str, words)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("side", [48, 100])
def test_splits_by_hand_have_any_size(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    data = gp.data.image_folder(folder, side, device="cpu")
    by_hand = Split("validation", data.validation.images, data.validation.labels, "mine")
    path = gp.metrics.prepare_extractor(
        gp.data.image_folder(folder, 28, device="cpu"), "cpu", show_progress=False
    )
    maker = nn.Sequential(nn.Linear(8, 3 * side * side), nn.Tanh(), nn.Unflatten(1, (3, side, side)))
    report = evaluate(gp.adapt(maker, 8), by_hand, samples=20, extractor=read_extractor(path, "cpu"))
    assert report.fid > 0
    assert report.fid_floor is None
    own = gp.metrics.prepare_extractor(data, "cpu", show_progress=False)
    assert evaluate(gp.adapt(maker, 8), data, samples=20, extractor=read_extractor(own, "cpu")).fid_floor > 0
