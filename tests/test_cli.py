"""The command line: what each command writes, its exit codes, its errors, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ganprune as gp
from ganprune import pruning
from ganprune.__main__ import main
from ganprune.allocation.shares import ALLOCATION_NAMES
from ganprune.core import tensors as checkpoints
from ganprune.core.tensors import read_safetensors
from ganprune.data.splits import ImageData, Split
from ganprune.networks.custom import CustomSpec, trust
from ganprune.scores.registry import SCORES
from ganprune.training import config as training
from ganprune.training.callbacks import CHECKPOINT, LOG, Checkpoint

TINY = ["--width", "2", "--latent-dim", "4", "--batch-size", "8", "--device", "cpu", "--samples", "0"]
QUICK = ["--samples", 0, "--device", "cpu"]
SHORT = ["--steps", 2, "--batch-size", 8, *QUICK]
QUALITY = {
    "digit_fid",
    "digit_fid_floor",
    "fid",
    "extractor",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "class_histogram",
    "histogram_kl",
    "real_loss",
    "fake_loss",
    "real_accuracy",
    "fake_accuracy",
}
SIZE = {"sparsity", "network_sparsity", "nonzero", "parameters", "macs", "effective_macs", "file_bytes"}


@pytest.fixture(autouse=True)
def _steady(monkeypatch):
    """One arithmetic for all runs: the probe may decide differently from process to process."""
    monkeypatch.setenv("GANPRUNE_PRECISION", "float32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a tiny DCGAN, trained by the command line itself."""
    path = tmp_path_factory.mktemp("cli") / "gan.safetensors"
    assert main(["train", *TINY, "--steps", "3", "--out", str(path)]) == 0
    return path


def run_json(capsys, *arguments):
    """Runs a command with --json; returns the one object that it wrote and its standard error."""
    capsys.readouterr()
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out), err


def fails(capsys, code, *arguments):
    """Runs a command that must fail; returns its one sentence."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.splitlines()[-1]


def same_weights(first, second):
    one, two = read_safetensors(first)[0], read_safetensors(second)[0]
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []


SAVE = Checkpoint.__call__


def save_and_stop(self, state):
    """A checkpoint after which the user interrupts."""
    SAVE(self, state)
    raise KeyboardInterrupt


# --- What the commands write ------------------------------------------------------------------------------


def test_train_writes_a_checkpoint_and_one_json_object(capsys, tmp_path):
    out = tmp_path / "new folder" / "gan.safetensors"
    row, err = run_json(capsys, "train", *TINY, "--steps", 4, "--seed", 5, "--out", out)
    assert row["command"] == "train"
    assert (row["steps"], row["seed"], row["data"], row["out"]) == (4, 5, "mnist", str(out))
    assert (
        SIZE | {"seconds", "training_seconds", "discriminator_loss", "generator_loss", "device"} <= row.keys()
    )
    assert row["sparsity"] == 0
    assert "training steps 1 to 4 on cpu in float32" in err
    assert "step 4 of 4: discriminator loss" in err
    gan = gp.load(out, "cpu")
    assert gan.metadata["request"]["steps"] == 4
    assert gan.metadata["config"]["loss"] == "hinge"
    defaults = gp.TrainConfig(steps=4, batch_size=8, seed=5, precision="float32")
    assert gp.TrainConfig(**gan.metadata["config"]) == defaults
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_train_takes_every_option(capsys, tmp_path):
    options = (
        "--model mlp --norm none --loss wasserstein --penalty gradient --penalty-weight 5 --critic-steps 2"
    )
    options += " --learning-rate 1e-4 --decay-from 1 --ema-decay 0.9 --clip 0.5"
    out = tmp_path / "mlp.safetensors"
    row, _ = run_json(capsys, "train", *TINY, "--steps", 2, *options.split(), "--out", out)
    gan = gp.load(out, "cpu")
    assert type(gan.generator).__name__ == "MLPGenerator"
    config = gan.metadata["config"]
    assert (config["penalty"], config["penalty_weight"], config["critic_steps"]) == ("gradient", 5, 2)
    assert (config["learning_rate"], config["decay_from"]) == (1e-4, 1)
    assert (config["ema_decay"], config["clip"]) == (0.9, 0.5)
    assert row["loss"] == "wasserstein"


def test_prune_measures_and_saves_with_masks(capsys, tmp_path, trained):
    out = tmp_path / "small.safetensors"
    arguments = ["prune", "--checkpoint", trained, "--sparsity", 0.8, "--steps", 3, "--batch-size", 8]
    row, err = run_json(capsys, *arguments, "--samples", 200, "--device", "cpu", "--out", out)
    assert QUALITY | SIZE | {"seconds", "out", "score", "fid_before", "fid_pruned", "split"} <= row.keys()
    assert all(row[key] is not None for key in (QUALITY | SIZE) - {"extractor"})
    assert row["digit_fid"] == row["fid"]
    assert row["effective_macs"] < row["macs"]
    assert "evaluating 200 samples against the validation split of mnist" in err
    gan = gp.load(out, "cpu")
    mask = gan.masks["generator"]
    assert row["sparsity"] == mask.sparsity
    assert mask.pruned == round(0.8 * mask.total)
    assert gan.masks["generator_ema"] == mask
    for network in (gan.generator, gan.generator_ema):
        gp.check_mask(network, mask)
    assert gan.metadata["validation"]["fid"] == row["fid"]
    dense = gp.load(trained, "cpu")
    assert not torch.equal(gan.discriminator.layers[0].bias, dense.discriminator.layers[0].bias)  # it went on


def test_what_is_pruned_are_the_ema_weights(capsys, tmp_path, trained):
    out = tmp_path / "small.safetensors"
    row, _ = run_json(
        capsys,
        "prune",
        "--checkpoint",
        trained,
        "--sparsity",
        0.5,
        "--steps",
        0,
        "--samples",
        0,
        "--out",
        out,
    )
    assert (row["steps"], row["fid_before"]) == (0, None)
    gan, ema = gp.load(out, "cpu"), gp.load(trained, "cpu").generator_ema
    for key, kept in gan.masks["generator"].items():
        expected = gp.prunable_weights(ema)[key] * kept
        assert torch.equal(gp.prunable_weights(gan.generator)[key], expected)
        assert torch.equal(gp.prunable_weights(gan.generator_ema)[key], expected)
    magnitudes = gp.allocate(gp.score(ema, "magnitude"), sparsity=0.5)
    assert gan.masks["generator"] == magnitudes


@pytest.mark.parametrize(
    "options",
    [
        "--threshold 0.01",
        "--sparsity 0.9 --score random --seed 3",
        "--sparsity 0.5 --score taylor --loss non-saturating",
        "--sparsity 0.5 --score wanda",
        "--sparsity 0.7 --allocation erk --protect layers.deconv4",
        "--allocation 2:4",
    ],
)
@pytest.mark.filterwarnings("ignore:layers whose inputs")
def test_prune_takes_scores_and_allocations(capsys, trained, options):
    row, _ = run_json(
        capsys,
        "prune",
        "--checkpoint",
        trained,
        *options.split(),
        "--steps",
        1,
        "--samples",
        0,
        "--device",
        "cpu",
    )
    assert 0 < row["sparsity"] < 1
    assert row["out"] is None


@pytest.fixture
def hurried(monkeypatch):
    """The same work on less: MNIST is read once for all tests, and batch norm recalibrated on two batches."""
    monkeypatch.setattr("ganprune.data.sources.load_data", lambda name, root, device: _mnist())
    monkeypatch.setattr(pruning, "recalibrate_batchnorm", partial(pruning.recalibrate_batchnorm, batches=2))


@cache
def _mnist():
    return gp.mnist("cpu")


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("allocation", ALLOCATION_NAMES)
@pytest.mark.parametrize("score", sorted(SCORES))
@pytest.mark.filterwarnings("ignore:layers whose inputs")
def test_every_score_goes_with_every_allocation(capsys, trained, score, allocation):
    arguments = ["prune", "--checkpoint", trained, "--score", score, "--allocation", allocation]
    arguments += ["--sparsity", {"1:4": 0.75}.get(allocation, 0.5), "--steps", 0, "--samples", 0]
    arguments += ["--device", "cpu", *(["--protect", "layers.deconv4"] if score == "apoz" else [])]
    if (score, allocation) in (("grasp", "lamp"), ("synflow", "lamp")):  # LAMP is defined for magnitudes
        assert "allocation 'lamp' needs scores of at least 0" in fails(capsys, 2, *arguments)
        return
    row, _ = run_json(capsys, *arguments)
    if ":" not in allocation:
        assert row["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert 0 < row["sparsity"] <= 0.75
    assert (row["score"], row["allocation"]) == (score, allocation)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("score", sorted(SCORES))
def test_every_score_goes_with_a_schedule(capsys, trained, score):
    arguments = ["prune", "--checkpoint", trained, "--score", score, "--sparsity", 0.6, "--schedule", "cubic"]
    arguments += ["--prune-every", 1, "--prune-end", 3, "--steps", 3, "--batch-size", 4, "--samples", 0]
    row, _ = run_json(
        capsys, *arguments, "--device", "cpu", *(["--protect", "layers.deconv4"] if score == "apoz" else [])
    )
    assert row["sparsity"] == pytest.approx(0.6, abs=1e-3)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("allocation", ["", *ALLOCATION_NAMES])
def test_movement_goes_with_every_allocation_but_those_for_other_scores(capsys, trained, allocation):
    arguments = ["prune", "--checkpoint", trained, "--score", "movement", "--sparsity", 0.5, *SHORT]
    arguments += ["--allocation", allocation] if allocation else []
    if allocation == "lamp" or ":" in allocation:
        assert "allocation" in fails(capsys, 2, *arguments)
        return
    row, _ = run_json(capsys, *arguments)
    assert row["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert (row["score"], row["allocation"], row["prune_end"]) == ("movement", allocation or None, 2)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("options", "end", "zeros"),
    [
        ("--sparsity 0.5", 6, [0.5] * 8),
        ("--sparsity 0.5 --prune-start 2", 6, [0, 0, *[0.5] * 6]),
        ("--sparsity 0.5 --prune-start 4 --prune-end 8 --prune-every 3", 8, [*[0] * 6, 0.5, 0.5]),
        ("--sparsity 0.7 --schedule cubic --prune-every 3", 6, [0, 0, *[0.7 * 7 / 8] * 3, 0.7, 0.7, 0.7]),
        (
            "--sparsity 0.75 --schedule geometric --prune-keep 0.5 --prune-every 2",
            4,
            [0, 0.5, 0.5, *[0.75] * 5],
        ),
        (
            "--schedule piecewise --prune-points 0:0.2,3:0.4,7:0.6",
            7,
            [*[0.2] * 2, *[0.4] * 4, 0.6, 0.6],
        ),
        ("--schedule piecewise --prune-points 1:0.2,3:0.4", 6, [0.2, 0.2, *[0.4] * 6]),
    ],
)
def test_movement_takes_schedules(capsys, monkeypatch, tmp_path, trained, options, end, zeros):
    seen, recalibrated = [], []

    def look(state):
        weights = gp.prunable_weights(state.gan.generator)
        seen.append(
            sum(int((w == 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())
        )
        assert ("generator" in state.masks) == (state.step >= end)

    look.order = LOG
    monkeypatch.setattr("ganprune.__main__.losses", lambda steps: look)
    recalibrate = pruning.recalibrate_batchnorm
    monkeypatch.setattr(
        pruning,
        "recalibrate_batchnorm",
        lambda *a, **options: (recalibrated.append(1), recalibrate(*a, **options)),
    )
    out = tmp_path / "out.safetensors"
    arguments = ["prune", "--checkpoint", trained, "--score", "movement", *options.split(), "--steps", 8]
    row, _ = run_json(capsys, *arguments, "--batch-size", 4, *QUICK, "--out", out)
    assert seen == pytest.approx(zeros, abs=1e-3)
    assert row["prune_end"] in (end, None)
    gan = gp.load(out, "cpu")
    assert gan.masks["generator"] == gan.masks["generator_ema"]
    assert gan.masks["generator"].sparsity == row["sparsity"] == pytest.approx(zeros[-1], abs=1e-3)
    assert len(recalibrated) == (2 if end == 8 else 0)  # where the last step has pruned


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("options", "sparsities"),
    [
        ("--sparsity 0.5 --schedule one-shot --prune-start 3", [0, 0, 0.5, 0.5]),
        ("--sparsity 0.5 --schedule one-shot --prune-start 4", [0, 0, 0, 0.5]),
        ("--sparsity 0.8 --schedule cubic --prune-start 1 --prune-end 3 --prune-every 1", [0, 0.7, 0.8, 0.8]),
        ("--sparsity 0.8 --schedule cubic --prune-every 2", [0, 0.8 * (1 - 1 / 27), 0.8, 0.8]),
        ("--sparsity 0.6 --schedule geometric --prune-keep 0.5 --prune-every 2", [0, 0.5, 0.5, 0.6]),
        ("--schedule piecewise --prune-points 0:0.2,2:0.4,4:0.9", [0.2, 0.4, 0.4, 0.9]),
        ("--sparsity 0.5 --dynamic set --prune-every 1", [0.5, 0.5, 0.5, 0.5]),
        ("--sparsity 0.5 --dynamic rigl --prune-every 2 --allocation erk", [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_prune_takes_schedules(capsys, monkeypatch, tmp_path, trained, options, sparsities):
    seen = []

    def look(state):
        mask = state.masks.get("generator")
        seen.append(0 if mask is None else mask.sparsity)
        if mask is not None:
            gp.check_mask(state.gan.generator_ema, mask)

    look.order = LOG
    monkeypatch.setattr("ganprune.__main__.losses", lambda steps: look)
    out = tmp_path / "out.safetensors"
    arguments = ["prune", "--checkpoint", trained, *options.split(), "--steps", 4, "--batch-size", 4]
    row, _ = run_json(capsys, *arguments, "--samples", 0, "--device", "cpu", "--out", out)
    assert seen == pytest.approx(sparsities, abs=1e-3)
    gan = gp.load(out, "cpu")
    assert gan.masks["generator"] == gan.masks["generator_ema"]
    assert gan.masks["generator"].sparsity == row["sparsity"] == pytest.approx(sparsities[-1], abs=1e-3)
    assert row["schedule"] in options or "--dynamic" in options


@pytest.mark.usefixtures("hurried")
def test_pruning_a_pruned_checkpoint_goes_on_from_its_mask(capsys, tmp_path, trained):
    first, second = tmp_path / "half.safetensors", tmp_path / "less.safetensors"
    common = ["--steps", 1, "--samples", 0, "--device", "cpu"]
    run_json(capsys, "prune", "--checkpoint", trained, "--sparsity", 0.5, *common, "--out", first)
    run_json(capsys, "prune", "--checkpoint", first, "--sparsity", 0.75, *common, "--out", second)
    before, after = gp.load(first, "cpu").masks["generator"], gp.load(second, "cpu").masks["generator"]
    assert all(not (after[key] & ~before[key]).any() for key in after)
    assert "sparsity must be at least" in fails(
        capsys, 2, "prune", "--checkpoint", first, "--sparsity", 0.25, *common
    )


def test_evaluate_reports_quality_and_size(capsys, trained):
    row, _ = run_json(
        capsys,
        "evaluate",
        "--checkpoint",
        trained,
        "--samples",
        200,
        "--split",
        "test",
        "--network",
        "generator",
    )
    assert QUALITY | SIZE | {"seconds", "network", "latency_seconds"} <= row.keys()
    assert (row["split"], row["samples"], row["network"]) == ("test", 200, "generator")
    gan = gp.load(trained, "cpu")
    report = gp.evaluate(gan.generator, gp.mnist("cpu").test, 200, 0, gan.discriminator, "hinge")
    assert row["digit_fid"] == pytest.approx(report.digit_fid, rel=1e-3)
    assert row["real_loss"] == pytest.approx(report.real_loss, rel=1e-3)


def test_without_json_a_short_table(capsys, trained):
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(trained), "--samples", "0", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.index(line.split("  ")[-1].strip()) for line in lines}) == 1
    assert any(line.startswith("parameters  ") for line in lines)
    assert len(lines) < 30


def test_sample_writes_a_picture(capsys, tmp_path, trained):
    out = tmp_path / "samples.png"
    row, _ = run_json(capsys, "sample", "--checkpoint", trained, "--n", 5, "--out", out)
    assert (row["n"], row["network"], row["out"]) == (5, "generator_ema", str(out))
    assert Image.open(out).size == (3 * 29 + 1, 2 * 29 + 1)


def test_sample_shows_real_images_by_seed(capsys, tmp_path):
    pictures = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / f"{name}.png"
        row, _ = run_json(capsys, "sample", "--real", "--n", 4, "--seed", seed, "--out", out)
        assert row["data"] == "mnist"
        pictures[name] = out.read_bytes()
    assert pictures["a"] == pictures["b"] != pictures["c"]


def test_the_shipped_generator_is_the_default(capsys, tmp_path):
    row, _ = run_json(
        capsys, "prune", "--sparsity", 0.8, "--steps", 1, "--samples", 0, "--out", tmp_path / "s"
    )
    assert row["checkpoint"] == "dcgan-mnist"
    assert row["parameters"] == sum(
        p.numel() for p in gp.load_pretrained("dcgan-mnist").generator.parameters()
    )


# --- Data, seed and device are understood everywhere ------------------------------------------------------


def fake_data(name, root, device):
    """Fashion-MNIST is grey noise here, CIFAR-10 coloured noise."""
    shape = (3, 32, 32) if name == "cifar10" else (1, 28, 28)
    parts = {}
    for part in ("train", "validation", "test"):
        images = torch.randint(256, (50, *shape), dtype=torch.uint8)
        parts[part] = Split(part, images, torch.arange(50) % 10, name)
    return ImageData(name, **parts)


def test_data_root_and_device_reach_the_loader(capsys, monkeypatch, tmp_path, trained):
    seen = []
    monkeypatch.setattr(
        "ganprune.data.sources.load_data", lambda *given: seen.append(given) or fake_data(*given)
    )
    common = ["--data", "fashion-mnist", "--data-root", "somewhere", "--device", "cpu", "--seed", 2]
    quick = ["--samples", 0]
    out = tmp_path / "fashion.safetensors"
    run_json(capsys, "train", *TINY, "--steps", 1, *common, "--out", out)
    run_json(capsys, "prune", "--checkpoint", trained, "--sparsity", 0.5, "--steps", 1, *quick, *common)
    run_json(capsys, "evaluate", "--checkpoint", trained, *quick, *common)
    run_json(capsys, "sample", "--real", *common, "--out", tmp_path / "real.png")
    assert seen == [("fashion-mnist", "somewhere", "cpu")] * 4
    run_json(capsys, "evaluate", "--checkpoint", out, *quick)  # a checkpoint knows what it was trained on
    assert seen[-1][0] == "fashion-mnist"
    message = fails(capsys, 2, "evaluate", "--checkpoint", trained, *quick, "--data", "cifar10")
    assert "argument --data: cifar10 has images of shape (3, 32, 32)" in message
    assert "makes (1, 28, 28)" in message


@pytest.mark.usefixtures("hurried")
def test_pruning_at_initialisation(capsys, tmp_path):
    new, out = tmp_path / "new.safetensors", tmp_path / "sparse.safetensors"
    row, err = run_json(capsys, "train", *TINY, "--steps", 0, "--seed", 4, "--out", new)
    assert "training steps" not in err
    initial = gp.dcgan(width=2, latent_dim=4, seed=4, device="cpu")
    same = zip(initial.generator.parameters(), gp.load(new, "cpu").generator.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in same)
    row, _ = run_json(
        capsys, "prune", "--checkpoint", new, "--score", "synflow", "--sparsity", 0.5, *SHORT, "--out", out
    )
    assert row["sparsity"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.usefixtures("hurried")
def test_a_schedule_does_not_give_weights_back(capsys, tmp_path, trained):
    half = tmp_path / "half.safetensors"
    run_json(capsys, "prune", "--checkpoint", trained, "--sparsity", 0.5, "--steps", 0, *QUICK, "--out", half)
    arguments = ["prune", "--checkpoint", half, "--schedule", "cubic", "--prune-every", 1, *SHORT]
    assert "argument --sparsity: must be at least 0.5" in fails(capsys, 2, *arguments, "--sparsity", 0.4)
    row, _ = run_json(capsys, *arguments, "--sparsity", 0.7)
    assert row["sparsity"] == pytest.approx(0.7, abs=1e-3)
    moving = ["prune", "--checkpoint", half, "--score", "movement", "--sparsity", 0.7, *SHORT]
    assert (
        "argument --score: movement needs every weight, but the checkpoint has a mask of sparsity 0.5"
        in fails(capsys, 2, *moving)
    )


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "options",
    [
        "--schedule cubic --prune-every 1 --score taylor",
        "--schedule one-shot --prune-start 6",
        "--dynamic rigl --prune-every 2",
        "--dynamic set --prune-every 1",
        "--score movement --schedule cubic --prune-end 5",
        "--score movement --prune-end 2",
    ],
)
def test_interrupted_pruning_goes_on_to_the_same_bits(capsys, monkeypatch, tmp_path, trained, options):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    arguments = ["prune", "--checkpoint", trained, "--sparsity", 0.6, *options.split(), "--steps", 6, *QUICK]
    arguments += ["--batch-size", 4, "--checkpoint-every", 3, "--out"]
    run_json(capsys, *arguments, whole)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "__call__", save_and_stop)
        fails(capsys, 130, *arguments, cut)
    run_json(capsys, *arguments, cut, "--resume")
    same_weights(whole, cut)


# --- Lottery tickets --------------------------------------------------------------------------------------


def lottery(folder, *more):
    """The arguments of a tiny run: two rounds of three steps."""
    tiny = ["--width", 2, "--latent-dim", 4, "--batch-size", 4, "--steps", 3, "--checkpoint-every", 1]
    return ["lottery", *tiny, *QUICK, "--rounds", 2, "--keep", 0.5, "--out", folder, *more]


@pytest.mark.usefixtures("hurried")
def test_lottery_trains_tickets_and_controls(capsys, tmp_path):
    folder = tmp_path / "new" / "tickets"
    arms = ["--arm", "shuffled", "--arm", "random", "--arm", "reinitialised"]
    row, err = run_json(capsys, *lottery(folder, *arms))
    assert (row["command"], row["rewind"], row["keep"], row["out"]) == ("lottery", "init", 0.5, str(folder))
    assert "round 2 of 2: sparsity 0.75" in err
    rows = row["rows"]
    controls = ("ticket", "reinitialised", "shuffled", "random")
    expected = [(0, "ticket"), *((number, arm) for number in (1, 2) for arm in controls)]
    assert [(one["round"], one["arm"]) for one in rows] == expected
    for one in rows:
        assert one["sparsity"] == pytest.approx(1 - 0.5 ** one["round"], abs=1e-3)
        assert SIZE | {"generator_loss", "kept", "start_step", "torch"} <= one.keys()
    gans = {arm: gp.load(folder / f"{arm}-02.safetensors", "cpu") for arm in controls[1:]}
    gans["ticket"] = gp.load(folder / "trained-02.safetensors", "cpu")
    masks = {arm: gan.masks["generator"] for arm, gan in gans.items()}
    assert masks["reinitialised"] == masks["ticket"] != masks["shuffled"] != masks["random"]
    assert all(mask.kept == masks["ticket"].kept for mask in masks.values())
    layers = {arm: [layer["kept"] for layer in mask.layers()] for arm, mask in masks.items()}
    assert layers["shuffled"] == layers["ticket"] != layers["random"]
    again, err = run_json(capsys, *lottery(folder, *arms, "--resume"))
    assert again["rows"] == rows  # nothing is done twice
    assert "training steps" not in err
    more, _ = run_json(capsys, *lottery(folder, *arms, "--resume", "--rounds", 3))
    assert more["rows"][: len(rows)] == rows
    assert more["rows"][-1]["sparsity"] == pytest.approx(0.875, abs=1e-2)
    row, _ = run_json(capsys, "evaluate", "--checkpoint", folder / "trained-02.safetensors", *QUICK)
    assert row["sparsity"] == rows[-1]["sparsity"]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "options",
    [
        "--rewind late --rewind-step 1 --networks both --score taylor --arm shuffled --allocation uniform",
        "--rewind learning-rate --arm reinitialised --networks discriminator --score random",
    ],
)
def test_a_killed_lottery_goes_on_to_the_same_bits(capsys, monkeypatch, tmp_path, options):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    row, _ = run_json(capsys, *lottery(whole, *options.split()))
    train, done = training.train, []

    def stop(state):
        done.append(state.step)
        if len(done) in (2, 5, 8):
            raise KeyboardInterrupt

    def killed(state, split, callbacks=(), show_progress=True):
        return train(state, split, [*callbacks, stop], show_progress)

    stop.order = CHECKPOINT + 1
    monkeypatch.setattr("ganprune.pruning.lottery.iterative.train", killed)
    monkeypatch.setattr("ganprune.training.loop.train", killed)
    codes = [main([*map(str, lottery(cut, *options.split())), "--json"])]
    while codes[-1] == 130:
        codes.append(main([*map(str, lottery(cut, *options.split(), "--resume")), "--json"]))
    assert codes == [130] * 3 + [0]
    resumed = json.loads(capsys.readouterr().out)
    assert [(one["round"], one["arm"]) for one in resumed["rows"]] == [
        (one["round"], one["arm"]) for one in row["rows"]
    ]
    finished = sorted(path.name for path in whole.glob("*.safetensors") if path.name != "state.safetensors")
    assert len(finished) == 3 + 3 + 2
    for name in finished:
        same_weights(whole / name, cut / name)


@pytest.mark.usefixtures("hurried")
def test_a_lottery_folder_holds_one_run(capsys, tmp_path):
    folder = tmp_path / "tickets"
    run_json(capsys, *lottery(folder, "--rounds", 1))
    message = fails(capsys, 2, *lottery(folder))
    assert f"argument --out: {folder} holds a run; add --resume to go on" in message
    message = fails(capsys, 2, *lottery(folder, "--resume", "--keep", 0.7))
    assert "was begun with other options (keep was 0.5, is 0.7)" in message


@pytest.mark.usefixtures("hurried")
def test_lottery_takes_a_checkpoint_and_networks_of_ones_own(capsys, tmp_path, trained, own):
    arguments = lottery(tmp_path / "a", "--checkpoint", trained, "--rounds", 1)
    arguments = arguments[:1] + arguments[5:]  # without --width and --latent-dim
    row, _ = run_json(capsys, *arguments)
    assert row["rows"][1]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    named = ["--generator", f"{own}:Net", "--allocation", "uniform", "--arm", "reinitialised"]
    arguments = [*arguments[:-5], tmp_path / "b", "--rounds", 1, *named]
    row, _ = run_json(capsys, *arguments)
    assert [one["arm"] for one in row["rows"]] == ["ticket", "ticket", "reinitialised"]


def test_lottery_without_json_a_line_per_row(capsys, tmp_path):
    capsys.readouterr()
    arguments = lottery(tmp_path / "tickets", "--rounds", 1, "--samples", 20)
    assert main([str(argument) for argument in arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["round", "arm", "ticket", "sparsity"]
    assert "digit-fid" in lines[0]
    assert [line.split()[:2] for line in lines[1:3]] == [["0", "ticket"], ["1", "ticket"]]
    assert len({len(line.split()) for line in lines[1:3]}) == 1
    assert lines[-1] == f"kept in {tmp_path / 'tickets'}"


# --- Networks of one's own --------------------------------------------------------------------------------

OWN_NETWORKS = """
import sys
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

LOADED = []


class Net(nn.Module):
    def __init__(self, latent_dim=5, channels=(4, 3), scale=1.0):
        super().__init__()
        first, second = channels
        self.latent_dim, self.scale = latent_dim, scale
        self.first = nn.Linear(latent_dim, first * 49)
        self.norm = nn.BatchNorm2d(first)
        self.up = spectral_norm(nn.ConvTranspose2d(first, second, 4, 2, 1))
        self.skip = nn.Conv2d(first, second, 1)
        self.last = nn.Conv2d(second, 1, 3, padding=1)

    def forward(self, z):
        h = functional.relu(self.norm(self.first(z).unflatten(1, (-1, 7, 7))))
        h = functional.relu(self.up(h) + self.skip(functional.interpolate(h, scale_factor=2)))
        return self.scale * torch.tanh(self.last(functional.interpolate(h, scale_factor=2)))


class Judge(nn.Module):
    def __init__(self, hidden=4):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, hidden, 5, 4), nn.Linear(hidden * 36, 1)

    def forward(self, images):
        return self.last(functional.leaky_relu(self.first(images)).flatten(1)).flatten()


class Columns(Judge):
    def forward(self, images):
        return super().forward(images)[:, None]


class Flat(Net):
    def forward(self, z):
        return super().forward(z).flatten(1)


class Conditional(Net):
    def forward(self, z, label):
        return super().forward(z)


class Nameless(Net):
    def __init__(self):
        super().__init__()
        del self.latent_dim


class Large(Net):
    def forward(self, z):
        return functional.interpolate(super().forward(z), scale_factor=2)


class Marked(Net):
    spec = "mine"


def number(latent_dim):
    return latent_dim


number_that_is_no_class = 3
"""


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A folder with a module of networks, which is the current directory; returns the module's name."""
    folder = tmp_path / "own"
    folder.mkdir()
    name = f"networks_{tmp_path.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(OWN_NETWORKS)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    monkeypatch.chdir(folder)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.usefixtures("hurried")
def test_every_command_takes_networks_of_ones_own(capsys, tmp_path, own):
    out, small, picture = (tmp_path / name for name in ("own.safetensors", "small.safetensors", "own.png"))
    named = ["--generator", f"{own}:Net", "--discriminator", f"{own}:Judge"]
    arguments = ["--generator-args", '{"latent_dim": 7, "channels": [3, 2]}']
    row, _ = run_json(capsys, "train", *named, *arguments, *SHORT, "--out", out)
    assert (row["generator"], row["generator_args"]) == (f"{own}:Net", json.loads(arguments[1]))
    assert row["parameters"] == 7 * 147 + 147 + 6 + 3 * 2 * 16 + 2 + 3 * 2 + 2 + 2 * 9 + 1
    row, _ = run_json(
        capsys,
        "prune",
        *named,
        "--checkpoint",
        out,
        "--sparsity",
        0.6,
        "--allocation",
        "erk",
        *SHORT,
        "--out",
        small,
    )
    assert row["sparsity"] == pytest.approx(0.6, abs=2e-3)
    row, _ = run_json(capsys, "evaluate", *named, "--checkpoint", small, "--samples", 50, "--device", "cpu")
    assert row["fid"] > 0
    assert row["real_loss"] is not None
    assert row["sparsity"] == pytest.approx(0.6, abs=2e-3)
    row, _ = run_json(capsys, "sample", *named, "--checkpoint", small, "--n", 4, "--out", picture)
    assert Image.open(picture).size == (2 * 29 + 1, 2 * 29 + 1)
    with trust(f"{own}:Net", f"{own}:Judge"):
        gan = gp.load(small, "cpu")
    assert gan.generator.latent_dim == 7
    gp.check_mask(gan.generator_ema, gan.masks["generator"])


@pytest.mark.usefixtures("hurried")
def test_weights_of_ones_own(capsys, tmp_path, own):
    weights, out = tmp_path / "weights.safetensors", tmp_path / "pruned.safetensors"
    with trust(f"{own}:Net"):
        network = CustomSpec(f"{own}:Net", {"latent_dim": 3}).build()
    save_file(network.state_dict(), weights)
    begun = ["--generator", f"{own}:Net", "--generator-args", '{"latent_dim": 3}']
    begun += ["--generator-weights", weights]
    amount = ["--sparsity", 0.5, "--allocation", "uniform"]
    run_json(capsys, "prune", *begun, *amount, "--steps", 0, *QUICK, "--out", out)
    with trust(f"{own}:Net"):
        gan = gp.load(out, "cpu")  # its discriminator is the course's
    kept = gan.masks["generator"]["first.weight"]
    assert torch.equal(gan.generator.first.weight, network.first.weight * kept)
    assert torch.equal(gan.generator_ema.last.bias, network.last.bias)
    row, _ = run_json(capsys, "evaluate", *begun, "--samples", 50, "--device", "cpu")
    assert row["fid"] > 0
    assert row["real_loss"] is None  # no discriminator was trained
    assert row["parameters"] == sum(p.numel() for p in network.parameters())
    message = fails(
        capsys, 1, "evaluate", "--generator", f"{own}:Net", "--generator-weights", weights, *QUICK
    )
    assert "first.weight has shape (196, 3), the network wants (196, 5)" in message
    message = fails(capsys, 1, "evaluate", *begun[:4], "--generator-weights", out, *QUICK)
    assert "is a checkpoint of a whole GAN; load it with --checkpoint" in message
    message = fails(capsys, 1, "evaluate", *begun[:4], "--generator-weights", "absent", *QUICK)
    assert "weights not found: expected a file at absent" in message
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    message = fails(capsys, 1, "evaluate", *begun[:4], "--generator-weights", tmp_path / "weights.pt", *QUICK)
    assert "write one with safetensors.torch.save_file" in message


@pytest.mark.usefixtures("hurried")
def test_a_checkpoint_alone_imports_nothing(capsys, tmp_path, own):
    out = tmp_path / "own.safetensors"
    run_json(capsys, "train", "--generator", f"{own}:Net", *SHORT, "--out", out)
    del sys.modules[own]
    message = fails(capsys, 1, "evaluate", "--checkpoint", out, *QUICK)
    assert f"with --generator {own}:Net" in message
    with pytest.raises(gp.core.CheckpointError, match="somebody's own code"):
        gp.load(out, "cpu")
    assert own not in sys.modules
    message = fails(capsys, 2, "evaluate", "--generator", f"{own}:Net", "--checkpoint", "dcgan-mnist", *QUICK)
    assert f"dcgan-mnist holds the generator DCGANGenerator, not {own}:Net" in message
    assert own not in sys.modules
    common = ["evaluate", "--checkpoint", out, *QUICK]
    message = fails(capsys, 1, *common, "--generator", f"{own}:Flat")  # another name allows nothing
    assert f"with --generator {own}:Net" in message
    message = fails(capsys, 2, *common, "--generator", f"{own}:Net", "--generator-args", '{"scale": 2}')
    assert "argument --generator-args" in message
    assert "was made with {}, got {'scale': 2}" in message
    (Path(f"{own}.py")).write_text("class Net:\n    pass\n")
    del sys.modules[own]
    message = fails(capsys, 1, *common, "--generator", f"{own}:Net")
    assert "must give a torch.nn.Module with parameters, got Net" in message


@pytest.mark.usefixtures("hurried")
def test_a_killed_run_of_ones_own_goes_on(capsys, monkeypatch, tmp_path, own):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    arguments = ["train", "--generator", f"{own}:Net", "--discriminator", f"{own}:Judge", "--steps", 4]
    arguments += ["--batch-size", 8, *QUICK, "--checkpoint-every", 2, "--out"]
    run_json(capsys, *arguments, whole)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "__call__", save_and_stop)
        fails(capsys, 130, *arguments, cut)
    run_json(capsys, *arguments, cut, "--resume")
    same_weights(whole, cut)
    small, part = tmp_path / "small.safetensors", tmp_path / "part.safetensors"
    arguments[0:1] = ["prune", "--checkpoint", whole, "--sparsity", 0.5, "--allocation", "uniform"]
    run_json(capsys, *arguments, small)  # the spectral norm of a masked weight must not move on
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "__call__", save_and_stop)
        fails(capsys, 130, *arguments, part)
    run_json(capsys, *arguments, part, "--resume")
    same_weights(small, part)


@pytest.mark.usefixtures("hurried")
def test_a_discriminator_of_ones_own(capsys, tmp_path, own):
    out, named = tmp_path / "gan.safetensors", ["--discriminator", f"{own}:Judge"]
    run_json(
        capsys, "train", *TINY, "--steps", 1, *named, "--discriminator-args", '{"hidden": 3}', "--out", out
    )
    row, _ = run_json(capsys, "prune", "--checkpoint", out, *named, "--sparsity", 0.5, *SHORT)
    assert row["sparsity"] == pytest.approx(0.5, abs=1e-3)
    weights = tmp_path / "judge.safetensors"
    with trust(f"{own}:Judge"):
        judge = gp.load(out, "cpu").discriminator
    assert judge.first.out_channels == 3
    save_file(judge.state_dict(), weights)
    named += ["--discriminator-args", '{"hidden": 3}', "--discriminator-weights", weights]
    row, err = run_json(capsys, "evaluate", "--generator", f"{own}:Net", *named, "--samples", 20)
    assert row["real_loss"] is not None
    assert "has initial weights; --generator-weights loads trained ones" in err


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--generator Net", "argument --generator: must have the form module:Class, got 'Net'"),
        ("--generator ../x:Net", "argument --generator: must have the form module:Class, got '../x:Net'"),
        ("--generator-args {}", "argument --generator-args: needs --generator, which names the class"),
        ("--discriminator-weights x", "argument --discriminator-weights: needs --discriminator"),
        ("--discriminator OWN:Judge", "argument --discriminator: needs --generator, or the --checkpoint"),
        ("--generator OWN:Net --generator-args [1]", "argument --generator-args: must be a JSON object"),
        ("--generator OWN:Net --generator-args {8}", "must be a JSON object"),
        ('--generator OWN:Net --generator-args {"scale":NaN}', "must be a JSON object"),
        ("--generator OWN:Net --checkpoint x --generator-weights y", "not allowed with --checkpoint"),
        ("--generator no.such:Net", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ("--generator OWN:Nett", "has no class Nett"),
        ("--generator OWN:number_that_is_no_class", "has no class number_that_is_no_class"),
        ("--generator leaves:Net", "leaves:Net cannot be imported: SystemExit: 3"),
        (
            '--generator OWN:number --generator-args {"latent_dim":1}',
            "must give a torch.nn.Module with parameters, got int",
        ),
        (
            '--generator OWN:Net --generator-args {"depth":1}',
            "could not be built: TypeError: Net.__init__() got an unexpected keyword argument 'depth'",
        ),
        ("--generator OWN:Marked", "has an attribute spec, which is taken"),
        ("--generator OWN:Nameless", "must have an attribute latent_dim, an integer of at least 1, got None"),
        ('--generator OWN:Net --generator-args {"scale":3}', "must give images in [-1, 1], got values from"),
        ("--generator OWN:Flat", "to images (N, C, H, W), got shape (4, 784) from latents of shape (4, 5)"),
        ("--generator OWN:Conditional", "it failed with TypeError"),
        ("--generator OWN:Large", "makes images (1, 56, 56), for which the course has no discriminator"),
        ("--generator OWN:Net --discriminator OWN:Columns", "to logits (N,), got shape (4, 1) for N = 4"),
        ("--generator OWN:Net --discriminator OWN:Net", "it failed with RuntimeError"),
    ],
)
def test_networks_of_ones_own_that_do_not_fit(capsys, own, options, message):
    Path("leaves.py").write_text("import sys\nsys.exit(3)\n")
    assert message in fails(capsys, 2, "evaluate", *options.replace("OWN", own).split(), *QUICK)


@pytest.mark.usefixtures("hurried")
def test_a_shape_that_no_data_has(capsys, own):
    Path("judges.py").write_text(
        f"from {own} import *\nclass Any(Judge):\n"
        "    def forward(self, images):\n        return super().forward(images[:, :, :28, :28])\n"
    )
    networks = ["--generator", f"{own}:Large", "--discriminator", "judges:Any"]
    message = fails(capsys, 2, "evaluate", *networks, *QUICK)
    assert f"(1, 28, 28), but the generator {own}:Large makes (1, 56, 56)" in message
    message = fails(capsys, 2, "train", "--generator", f"{own}:Net", "--latent-dim", 4, *QUICK, "--out", "x")
    assert "argument --latent-dim: not allowed with --generator, which has its own" in message


# --- Errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "ganprune: error: the following arguments are required: COMMAND"),
        ("shrink", "invalid choice: 'shrink'"),
        ("train", "ganprune train: error: the following arguments are required: --out"),
        ("train --out x --steps -1", "argument --steps: must be an integer of at least 0, got '-1'"),
        ("train --out x --width two", "argument --width: must be an integer of at least 1, got 'two'"),
        ("train --out x --loss mse", "argument --loss: invalid choice: 'mse'"),
        ("train --out x --penalty l2", "argument --penalty: invalid choice: 'l2'"),
        (
            "train --out x --learning-rate nan",
            "argument --learning-rate: must be a positive number, got 'nan'",
        ),
        ("train --out x --ema-decay 1", "argument --ema-decay: must be a number in [0, 1), got '1'"),
        ("train --out x --decay-from 2", "argument --decay-from: must be a number in [0, 1], got '2'"),
        ("train --out x --data imagenet", "argument --data: invalid choice: 'imagenet'"),
        ("train --out x --samples 1", "argument --samples: must be an integer of at least 2, or 0"),
        ("train --out x --device abacus", "device must be 'cpu', 'cuda', 'cuda:N' or 'mps', got 'abacus'"),
        ("train --out x --model mlp --norm batch", "norm of an MLP discriminator must be spectral or none"),
        ("train --out .", "argument --out: must be a file, got the folder '.'"),
        ("train --out taken/gan.safetensors", "argument --out: cannot write 'taken/gan.safetensors'"),
        ("prune", "one of the arguments --sparsity --threshold --prune-points is required"),
        ("prune --sparsity 0.5 --schedule linear", "argument --schedule: invalid choice: 'linear'"),
        ("prune --threshold 1 --schedule cubic", "argument --threshold: prunes at once"),
        ("prune --allocation 2:4 --prune-start 5", "argument --allocation: 2:4 has one sparsity"),
        (
            "prune --sparsity 0.5 --dynamic set --schedule cubic",
            "argument --dynamic: needs a mask from the start",
        ),
        ("prune --sparsity 0.5 --prune-end 5", "argument --prune-end: is not used by --schedule one-shot"),
        (
            "prune --sparsity 0.5 --prune-keep 0.5",
            "argument --prune-keep: is not used by --schedule one-shot",
        ),
        (
            "prune --sparsity 0.5 --schedule cubic --prune-keep 1",
            "argument --prune-keep: must be a number in (0, 1)",
        ),
        ("prune --sparsity 0.5 --schedule piecewise", "argument --prune-points: is required"),
        ("prune --schedule piecewise --prune-points 5", "must be steps and sparsities in [0, 1) such as"),
        ("prune --schedule piecewise --prune-points 5:1", "must be steps and sparsities in [0, 1) such as"),
        ("prune --schedule piecewise --prune-points 5:0.5,9:0.4", "schedule must not fall between start 0"),
        (
            "prune --sparsity 0.5 --schedule cubic --prune-end 9 --prune-start 9",
            "end must be after start, 9, got 9",
        ),
        (
            "prune --sparsity 0.9 --schedule geometric --steps 50",
            "argument --steps: must be at least 1100, where",
        ),
        (
            "prune --score movement --threshold 1",
            "argument --threshold: 1.0 sets the mask at once, so it does not go with --score movement",
        ),
        ("prune --score movement --allocation 1:4", "argument --allocation: 1:4 sets the mask at once"),
        (
            "prune --score movement --sparsity 0.5 --dynamic rigl",
            "argument --dynamic: rigl sets the mask at once",
        ),
        (
            "prune --score movement --sparsity 0.5 --steps 0",
            "argument --steps: must be at least 1 with --score movement, which is gathered while training, got 0",
        ),
        ("prune --score movement", "one of the arguments --sparsity --threshold --prune-points is required"),
        (
            "prune --score movement --sparsity 0.5 --prune-keep 0.5",
            "argument --prune-keep: is not used by --schedule one-shot",
        ),
        (
            "prune --score movement --prune-points 1:0.5 --schedule piecewise --prune-every 2",
            "argument --prune-every: is not used by --schedule piecewise",
        ),
        (
            "prune --score movement --sparsity 0.5 --prune-end 9 --steps 5",
            "argument --steps: must be at least 9, where the schedule ends, got 5",
        ),
        ("prune --score movement --sparsity 0.5 --allocation lamp", "per-output, got 'lamp'"),
        (
            "lottery --out x --score movement",
            "argument --score: must be a score of the trained network, which a ticket needs; movement is",
        ),
        ("lottery", "ganprune lottery: error: the following arguments are required: --out"),
        ("lottery --out taken", "argument --out: must be a folder, got the file 'taken'"),
        ("lottery --out taken/folder", "argument --out: cannot write 'taken/folder'"),
        ("lottery --out x --rounds 0", "argument --rounds: must be an integer of at least 1, got '0'"),
        ("lottery --out x --keep 1", "argument --keep: must be a number in (0, 1), got '1'"),
        ("lottery --out x --rewind back", "argument --rewind: invalid choice: 'back'"),
        ("lottery --out x --rewind late", "rewind_step must be in [1, 11999] for rewind='late', got None"),
        ("lottery --out x --arm luck", "argument --arm: invalid choice: 'luck'"),
        (
            "lottery --out x --allocation 2:4",
            "allocation must be one of global, uniform, erk, lamp, per-output",
        ),
        (
            "lottery --out x --rewind learning-rate --arm shuffled",
            "argument --arm: shuffled not with --rewind learning-rate",
        ),
        (
            "lottery --out x --checkpoint dcgan-mnist --latent-dim 3",
            "--latent-dim: not allowed with --checkpoint",
        ),
        ("prune --sparsity 1", "argument --sparsity: must be a number in [0, 1), got '1'"),
        ("prune --sparsity -0.1", "argument --sparsity: must be a number in [0, 1), got '-0.1'"),
        ("prune --sparsity nan", "argument --sparsity: must be a number in [0, 1), got 'nan'"),
        ("prune --sparsity most", "argument --sparsity: must be a number in [0, 1), got 'most'"),
        ("prune --threshold -1", "argument --threshold: must be a positive number, got '-1'"),
        ("prune --sparsity 0.5 --threshold 1", "argument --threshold: not allowed with argument --sparsity"),
        ("prune --sparsity 0.5 --score luck", "argument --score: invalid choice: 'luck'"),
        ("prune --sparsity 0.5 --allocation fair", "argument --allocation: invalid choice: 'fair'"),
        ("prune --sparsity 0.5 --steps -1", "argument --steps: must be an integer of at least 0, got '-1'"),
        ("prune --sparsity 0.5 --resume", "argument --resume: needs --out"),
        ("evaluate --split train", "argument --split: invalid choice: 'train'"),
        ("evaluate --network critic", "argument --network: invalid choice: 'critic'"),
        ("evaluate --seed one", "argument --seed: must be an integer, got 'one'"),
        ("sample --n 0", "argument --n: must be an integer of at least 1, got '0'"),
        ("sample --out grid.jpg", "argument --out: must end in .png, got 'grid.jpg'"),
        ("sample --checkpoint", "argument --checkpoint: expected one argument"),
    ],
)
def test_wrong_arguments_give_one_sentence_and_code_2(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file where a folder would have to be")
    capsys.readouterr()
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_wrong_arguments_that_a_checkpoint_reveals(capsys, trained):
    common = ["prune", "--checkpoint", trained, "--samples", 0, "--device", "cpu"]
    assert "protect names nothing" in fails(capsys, 2, *common, "--sparsity", 0.5, "--protect", "nothing")
    assert "threshold" in fails(capsys, 2, *common, "--threshold", 1e6)


def test_what_cannot_be_done_gives_one_sentence_and_code_1(capsys, tmp_path, trained):
    missing = tmp_path / "missing.safetensors"
    assert f"checkpoint not found: expected a file at {missing}" in fails(
        capsys, 1, "evaluate", "--checkpoint", missing
    )
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(trained.read_bytes()[:1000])
    assert "is not a whole safetensors file" in fails(capsys, 1, "sample", "--checkpoint", damaged)
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"cut short")
    message = fails(
        capsys,
        1,
        "evaluate",
        "--data",
        "fashion-mnist",
        "--data-root",
        raw.parents[1],
        "--checkpoint",
        trained,
    )
    assert "fashion-mnist file damaged" in message


def test_divergence_gives_code_1_and_leaves_no_checkpoint(capsys, tmp_path):
    out = tmp_path / "gan.safetensors"
    options = ["--norm", "none", "--learning-rate", 1e30, "--steps", 5, "--out", out]
    assert "training diverged at step" in fails(capsys, 1, "train", *TINY, *options)
    assert not out.exists()


@pytest.mark.usefixtures("hurried")
def test_divergence_in_a_movement_phase_gives_code_1(capsys, trained):
    arguments = ["prune", "--checkpoint", trained, "--score", "movement", "--sparsity", 0.5, *QUICK]
    message = fails(capsys, 1, *arguments, "--steps", 20, "--batch-size", 4, "--learning-rate", 1e30)
    assert "training diverged by step" in message


def test_a_broken_mask_gives_code_1(capsys, tmp_path, trained):
    gan, path = gp.load(trained, "cpu"), tmp_path / "broken.safetensors"
    mask = gp.prune(gan.generator, sparsity=0.5)
    tensors = checkpoints.network_tensors(gan.networks(), {})
    tensors |= {f"mask/generator_ema/{key}": kept for key, kept in mask.items()}
    checkpoints.write_safetensors(path, tensors, checkpoints.gan_metadata(gan))
    assert "non-zero weights under its mask" in fails(capsys, 1, "evaluate", "--checkpoint", path)


def test_control_c_gives_code_130(capsys, monkeypatch, trained):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("ganprune.networks.checkpoints.load", interrupted)
    assert (
        fails(capsys, 130, "sample", "--checkpoint", trained, "--out", "never.png") == "ganprune: interrupted"
    )
    assert not Path("never.png").exists()


# --- Going on after a stop --------------------------------------------------------------------------------


def test_kill_9_and_resume_end_with_the_same_bits(capsys, tmp_path):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    arguments = ["train", *TINY, "--steps", "300", "--checkpoint-every", "20", "--out"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ganprune", *arguments, str(cut)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.DEVNULL,
    )
    partial = tmp_path / "cut.partial.safetensors"
    deadline = time.monotonic() + 120
    while not partial.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not cut.exists()
    assert gp.TrainState.load(partial, "cpu").step < 300
    assert main([*arguments, str(whole)]) == 0
    capsys.readouterr()
    assert "add --resume to go on, or delete that file" in fails(capsys, 2, *arguments, cut)
    other = [*arguments, str(cut), "--resume", "--loss", "minimax"]
    assert "begun with other options (loss was 'hinge', is 'minimax')" in fails(capsys, 2, *other)
    assert main([*arguments, str(cut), "--resume"]) == 0
    assert f"resuming {partial} after step" in capsys.readouterr().err
    assert not partial.exists()
    same_weights(whole, cut)


@pytest.mark.usefixtures("hurried")
def test_an_interrupted_fine_tuning_goes_on_with_its_mask(capsys, monkeypatch, tmp_path, trained):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    arguments = ["prune", "--checkpoint", trained, "--sparsity", 0.7, "--steps", 8, "--samples", 0]
    arguments += ["--batch-size", 8, "--device", "cpu", "--checkpoint-every", 4, "--resume", "--out"]
    _, err = run_json(capsys, *arguments, whole)
    assert "no unfinished run to resume" in err
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "__call__", save_and_stop)
        fails(capsys, 130, *arguments, cut)
    row, _ = run_json(capsys, *arguments, cut)
    assert row["sparsity"] == pytest.approx(0.7, abs=1e-3)
    same_weights(whole, cut)


def test_python_m_ganprune_helps():
    done = subprocess.run(
        [sys.executable, "-m", "ganprune", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert all(
        command in done.stdout
        for command in ("train", "prune", "lottery", "evaluate", "sample", "exit codes")
    )
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["train", "prune", "lottery", "evaluate", "sample"])
def test_each_command_helps_with_examples(capsys, command):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"ganprune {command}" in out.split("examples:")[1]
    assert all(option in out for option in ("--data", "--data-root", "--seed", "--device", "--json"))


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ganprune {gp.__version__}\n"
