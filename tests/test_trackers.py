"""Trackers with both libraries for real, offline: what is in the files that they wrote."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_data import small_mnist
from tools.small_book import wait_for
from tools.small_gans import Ring, config, equal, small_gan, weights

import ganprune as gp
from ganprune.__main__ import main
from ganprune.experiments import training
from ganprune.experiments.runner import units
from ganprune.experiments.studies import study
from ganprune.training import trackers
from ganprune.training.trackers import Track, TrackerError, grid

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--width", "2", "--latent-dim", "4", "--device", "cpu", "--precision", "float32", "--batch-size", "4"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Return an empty folder to be in, without a network for W&B."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-own"))
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def tensorboard(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list], str]:
    """Return the scalars, the images and the text of a run, read back from its event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    scalars = {
        key: [(event.step, event.value) for event in found.Scalars(key)] for key in found.Tags()["scalars"]
    }
    pictures = {key: found.Images(key) for key in found.Tags()["images"]}
    (text,) = found.Tensors("config/text_summary")
    return scalars, pictures, text.tensor_proto.string_val[0].decode()


def wandb_rows(folder: Path) -> list[dict]:
    """Return the rows of the one offline run in a folder, once the process that writes it is done."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    wait_for(lambda: any(record.WhichOneof("record_type") == "exit" for record in wandb_records(path)))
    found = [record for record in wandb_records(path) if record.WhichOneof("record_type") == "history"]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
    ]


def wandb_records(path: Path) -> Iterator[Any]:
    """Return what such a file holds: a log as LevelDB's.

    After 7 bytes come blocks of 32 KiB, in which each piece of a record has a checksum, its length and its kind.
    """
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, b""
    assert data[:4] in (b":W&B", b"")
    while place + 7 <= len(data):
        room = 32_768 - place % 32_768
        if room < 7:  # too little for a head
            place += room
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if place + 7 + length > len(data):
            return
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def image_gan(seed: int = 0) -> gp.GAN:
    """Return a small convolutional GAN."""
    return gp.dcgan((1, 28, 28), 4, 2, seed=seed, device="cpu")


class Found(gp.training.Callback):
    """Keeps a row at each step, as Evaluate does."""

    name = "found"
    order = gp.training.EVALUATE

    def __call__(self, state: gp.TrainState) -> None:
        """Add a row."""
        self.rows.append({"step": state.step, "fid": state.step / 10, "network": "generator", "good": True})


def test_tensorboard_holds_losses_rows_and_grids(place) -> None:
    data = small_mnist(64)
    state = gp.TrainState(image_gan(), config(steps=6, log_every=2))
    track = Track("tensorboard", "logs", "one", images_every=4, samples=5, config={"note": "mine"})
    gp.train(state, data.train, [Found(), track])
    scalars, pictures, text = tensorboard(place / "logs" / "one")
    for name in ("discriminator_loss", "generator_loss"):
        wanted = [(row["step"], pytest.approx(row[name])) for row in state.history]
        assert scalars[f"losses/{name}"] == wanted and len(wanted) == 3
    assert scalars["found/fid"] == [(step, pytest.approx(step / 10)) for step in range(1, 7)]
    assert scalars.keys() == {"losses/discriminator_loss", "losses/generator_loss", "found/fid"}
    (grids,) = pictures.values()
    assert [(one.step, one.height, one.width) for one in grids] == [(4, 57, 86), (6, 57, 86)]
    assert "note: mine" in text and "learning_rate: 0.001" in text


def test_wandb_holds_the_same(place) -> None:
    data = small_mnist(64)
    state = gp.TrainState(image_gan(), config(steps=4, log_every=2))
    gp.train(state, data.train, [Found(), Track("wandb", "logs", "one", images_every=4, samples=4)])
    rows = wandb_rows(place / "logs")
    losses = [row for row in rows if "losses/generator_loss" in row]
    assert [(row["step"], row["losses/generator_loss"]) for row in losses] == [
        (row["step"], pytest.approx(row["generator_loss"])) for row in state.history
    ]
    assert [row["found/fid"] for row in rows if "found/fid" in row] == [0.1, 0.2, 0.3, 0.4]
    (picture,) = [row for row in rows if any(key.startswith("samples") for key in row)]
    assert picture["step"] == 4
    assert len(list((place / "logs").glob("wandb/offline-run-*/files/media/images/samples*.png"))) == 1


@pytest.mark.parametrize("tracker", ["tensorboard"])
def test_a_training_is_what_it_is_without_a_tracker(tracker) -> None:
    gans = [small_gan(), small_gan()]
    gp.train(gp.TrainState(gans[0], config()), Ring())
    gp.train(gp.TrainState(gans[1], config()), Ring(), [Track(tracker, "logs", images_every=1)])
    assert equal(weights(gans[0]), weights(gans[1]))  # and points, which are no pictures, give no grid
    assert tensorboard(Path("logs/training"))[1] == {}


def test_a_resumed_training_logs_what_is_new(place) -> None:
    gp.train(state := gp.TrainState(small_gan(), config()), Ring(), [Found(), Track("tensorboard")], until=2)
    state.save("state.safetensors")
    again = gp.TrainState.load("state.safetensors", "cpu")
    gp.train(again, Ring(), [Found(), Track("tensorboard", name="more")])
    assert [step for step, _ in tensorboard(place / "runs" / "training")[0]["found/fid"]] == [1, 2]
    assert [step for step, _ in tensorboard(place / "runs" / "more")[0]["found/fid"]] == [3, 4]


def test_pictures_that_are_not_finite_are_a_divergence(place) -> None:
    gan = image_gan()

    def poison(state: gp.TrainState) -> None:
        state.gan.generator_ema.layers.deconv2.weight.data[0] = float("nan")

    poison.order = 0
    tracked = [poison, Track("tensorboard", place, "run", 1, 4)]
    with pytest.raises(
        gp.training.DivergenceError, match="diverged by step 1: .* parameter layers.deconv2.weight"
    ):
        gp.train(gp.TrainState(gan, config(log_every=4)), small_mnist(16).train, tracked)


def test_a_training_that_ends_in_an_error_closes_its_run(place) -> None:
    def fail(state):
        if state.step == 3:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        gp.train(gp.TrainState(small_gan(), config()), Ring(), [Found(), Track("tensorboard"), fail])
    assert len(tensorboard(place / "runs" / "training")[0]["found/fid"]) == 3


@pytest.mark.parametrize(("count", "shape"), [(1, (3, 2)), (4, (7, 5)), (5, (7, 8)), (7, (11, 8))])
def test_a_grid_is_its_images(count, shape) -> None:
    images = torch.rand(count, 3, 3, 2) * 2.2 - 1.1
    canvas = grid(images)
    assert canvas.shape == (*shape, 3) and canvas.dtype == torch.uint8
    columns = (shape[1] + 1) // 3
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        piece = canvas[4 * row : 4 * row + 3, 3 * column : 3 * column + 2].permute(2, 0, 1)
        wanted = np.rint((image.clamp(-1, 1).numpy() + 1) * 127.5)
        assert np.array_equal(piece.numpy(), wanted.astype(np.uint8))


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_missing_library_is_named_with_its_extra(tracker, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "wandb" if tracker == "wandb" else "torch.utils.tensorboard", None)
    with pytest.raises(TrackerError, match=rf"{tracker} needs .*: pip install 'ganprune\[trackers\]'$"):
        Track(tracker)
    for command in (
        ["train", *TINY, "--steps", "1", "--out", "gan.safetensors"],
        ["experiment", "run", "dense"],
    ):
        assert main([*command, "--tracker", tracker]) == 1
        assert "pip install 'ganprune[trackers]'" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("gan.safetensors").exists()


def test_a_tracker_that_cannot_begin_says_so(place) -> None:
    (place / "file").touch()
    with pytest.raises(TrackerError, match="the tracker tensorboard could not begin: "):
        gp.train(gp.TrainState(small_gan(), config()), Ring(), [Track("tensorboard", "file")])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="tracker must be one of tensorboard, wandb"):
        Track("comet")
    with pytest.raises(ValueError, match="images_every must be"):
        Track("tensorboard", images_every=0)


def test_nobody_imports_a_tracker_who_does_not_ask_for_it() -> None:
    program = "import sys, ganprune as gp; gp.training.Track, gp.train; import ganprune.cli.train\n"
    program += (
        "print([name for name in ('tensorboard', 'wandb', 'torch.utils.tensorboard') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_commands_log_and_a_tracker_is_no_part_of_the_request(place, capsys) -> None:
    small = [*TINY, "--samples", "0", "--steps", "2"]
    assert (
        main(["train", *small, "--out", "gan.safetensors", "--tracker", "tensorboard", "--track-to", "logs"])
        == 0
    )
    assert tensorboard(place / "logs" / "train gan")[0].keys() >= {"losses/generator_loss"}
    row = gp.load("gan.safetensors").metadata["request"]
    assert not row.keys() & {"tracker", "track_to"}
    capsys.readouterr()
    assert main(["train", *small, "--out", "gan.safetensors"]) == 0
    assert "holds this very run" in capsys.readouterr().err
    pruning = [
        "prune",
        "--checkpoint",
        "gan.safetensors",
        "--sparsity",
        "0.5",
        "--steps",
        "2",
        "--samples",
        "0",
    ]
    assert main([*pruning, "--device", "cpu", "--batch-size", "4", "--tracker", "tensorboard"]) == 0
    assert tensorboard(place / "runs" / "prune")[1]
    tickets = ["lottery", *small, "--rounds", "1", "--keep", "0.5", "--arm", "shuffled", "--out", "tickets"]
    assert main([*tickets, "--tracker", "tensorboard"]) == 0
    names = sorted(path.name for path in (place / "runs").iterdir())
    assert names == ["prune", "tickets shuffled 0.500", "tickets ticket 0.000", "tickets ticket 0.500"]
    assert main([*tickets, "--resume"]) == 0  # without a tracker it goes on as well


def test_an_experiment_logs_each_training(place, monkeypatch) -> None:
    found = small_mnist(64)
    monkeypatch.setattr(training, "course_data", lambda: found)
    arms = study("before-training", "smoke").arms[:1]
    (unit,) = units(arms, [0], "records")
    monkeypatch.setattr("ganprune.cli.experiment.units", lambda *_: [unit])
    command = ["experiment", "run", "before-training", "--profile", "smoke", "--tracker", "tensorboard"]
    assert main(command) == 0
    scalars, pictures, text = tensorboard(place / "runs" / f"from scratch {unit.key} seed 0")
    assert [step for step, _ in scalars["marks/digit_fid"]] == [1, 2, 3] and pictures
    assert f"experiment: {unit.experiment.label}" in text
    assert trackers.TRACKERS == ("tensorboard", "wandb")
