"""The command line by what it promises: help, exit codes, messages, files, resuming, JSON, and walks to the end."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tools.small_data import small_data

import ganprune as gp
from ganprune.__main__ import main
from ganprune.cli.dispatch import COMMANDS, build_parser
from ganprune.cli.runs import Estimate
from ganprune.core.files import owned, unfinished
from ganprune.core.tensors import read_safetensors
from ganprune.data.splits import ImageData, Split
from ganprune.networks.custom import trust

QUICK = ["--samples", 0, "--device", "cpu", "--precision", "float32", "--batch-size", 4]
TINY = ["--width", 2, "--latent-dim", 4, *QUICK]
SIZE = {"sparsity", "nonzero", "parameters", "macs", "effective_macs", "file_bytes", "compressed_bytes"}
QUALITY = {"fid", "fid_floor", "extractor", "kid", "precision", "recall", "density", "coverage", "real_loss"}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(gp.__file__).parents[1])}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a tiny DCGAN, made by the command line itself, in a folder with a space and an é."""
    path = tmp_path_factory.mktemp("dépôt 1") / "gan é.safetensors"
    assert main(["train", *map(str, TINY), "--steps", "3", "--out", str(path)]) == 0
    return path


@pytest.fixture
def small(monkeypatch):
    """Any data set is the first images of MNIST, whatever its name; cifar10 has three channels."""

    def load(name, root=None, device=None):
        data = small_data(name)
        if name != "cifar10":
            return data
        coloured = {}
        for part in ("train", "validation", "test"):
            grey = getattr(data, part)
            images = torch.nn.functional.pad(grey.images, (2, 2, 2, 2)).repeat(1, 3, 1, 1)
            coloured[part] = Split(part, images, grey.labels, name)
        data = ImageData(name, **coloured)
        for split in coloured.values():
            object.__setattr__(split, "parent", data)
        return data

    monkeypatch.setattr(gp, "load_data", load, raising=False)


def run_json(capsys, *arguments):
    """Run a command with --json; return the one object that it wrote, and its standard error."""
    capsys.readouterr()
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out), err


def fails(capsys, code, *arguments):
    """Run a command that must fail; return its last sentence."""
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


def start(*arguments, **options):
    """Start the command in a process of its own."""
    command = [sys.executable, "-m", "ganprune", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=options.pop("env", ENVIRONMENT), **pipes, **options)


def wait_for(path, process):
    end = time.monotonic() + 120
    while not path.is_file() and process.poll() != 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


# --- Help -------------------------------------------------------------------------------------------------


def test_python_m_ganprune_helps():
    process = start("--help")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert all(command in out for command in [*COMMANDS, "exit codes"])


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_is_explained_and_each_example_is_understood(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert not re.search(r"^  --\S+( \S+)?\n(?! {10})", text, re.MULTILINE), "an option without a help text"
    examples = text.split("examples:\n")[1].split("\n\nexit codes")[0].replace("\\\n", " ")
    for line in examples.splitlines():
        line = line.split("     ")[0] if "     " in line.strip() and "after a stop" in line else line
        words = shlex.split(line.split(">")[0])
        assert words[0] == "ganprune"
        build_parser().parse_args(words[1:])


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ganprune {gp.__version__}\n"


# --- Files and rows ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_train_and_prune_write_checkpoints_and_rows(capsys, tmp_path):
    gan, small_gan = tmp_path / "new" / "gan", tmp_path / "small.safetensors"
    row, err = run_json(capsys, "train", *TINY, "--steps", 4, "--seed", 5, "--out", gan)
    assert (row["command"], row["steps"], row["seed"], row["out"]) == ("train", 4, 5, str(gan))
    assert SIZE | {"seconds", "training_seconds", "generator_loss"} <= row.keys()
    assert row["training_precision"] == "float32"
    assert "training steps 1 to 4 on cpu in float32" in err
    assert gp.load(gan, "cpu").metadata["config"]["precision"] == "float32"
    assert [path.name for path in gan.parent.iterdir()] == [gan.name]
    prune = ["prune", "--checkpoint", gan, "--sparsity", 0.8, "--steps", 2, *QUICK[2:], "--samples", 50]
    row, err = run_json(capsys, *prune, "--out", small_gan)
    assert QUALITY | SIZE | {"fid_before", "fid_pruned"} <= row.keys()
    assert 0 <= row["precision"] <= 1  # the metric
    pruned = gp.load(small_gan, "cpu")
    pruned.masks.check()
    assert pruned.masks["generator"].sparsity == row["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert {key: pruned.metadata["validation"][key] for key in QUALITY} == {key: row[key] for key in QUALITY}


@pytest.mark.parametrize(
    ("options", "sparsity"),
    [
        ("--threshold 0.01 --score magnitude", None),
        ("--sparsity 0.5 --score squared-gradient --loss minimax", 0.5),
        ("--sparsity 0.5 --score mean-activation --allocation erk --protect layers.deconv4", None),
        ("--allocation 2:4", None),
        ("--sparsity 0.36 --schedule geometric --prune-every 2", 0.36),
        ("--sparsity 0.488 --schedule geometric --prune-every 1 --score taylor", 0.488),
        ("--sparsity 0.7 --schedule cubic --prune-every 1", 0.7),
        ("--sparsity 0.5 --prune-start 4", 0.5),
        ("--schedule piecewise --prune-points 0:0.2,2:0.4", 0.4),
        ("--sparsity 0.6 --score movement", 0.6),
        ("--sparsity 0.6 --score movement --schedule cubic --prune-end 3", 0.6),
        ("--sparsity 0.5 --dynamic set --prune-every 1", 0.5),
    ],
)
@pytest.mark.usefixtures("small")
def test_prune_reaches_the_sparsity_that_was_asked_for(capsys, trained, options, sparsity):
    row, _ = run_json(capsys, "prune", "--checkpoint", trained, *options.split(), "--steps", 4, *QUICK)
    assert row["out"] is None
    assert 0 < row["sparsity"] < 1
    if sparsity is not None:
        assert row["sparsity"] == pytest.approx(sparsity, abs=1e-3)


def test_the_shipped_generator_is_the_default_and_sampling_writes_a_picture(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    row, _ = run_json(capsys, "sample", "--n", 5, "--out", "é 1.png")
    assert (row["checkpoint"], row["n"]) == ("dcgan-mnist", 5)
    assert Image.open("é 1.png").size == (3 * 29 + 1, 2 * 29 + 1)
    run_json(capsys, "sample", "--real", "--seed", 1, "--n", 4, "--out", "a.png")
    run_json(capsys, "sample", "--real", "--seed", 2, "--n", 4, "--out", "b.png")
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()


def test_without_json_a_table(capsys, trained):
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(trained), "--samples", "0", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("parameters  ") for line in lines)


@pytest.mark.usefixtures("small")
def test_a_link_is_written_through_and_the_umask_counts(capsys, tmp_path):
    target, link, new = tmp_path / "disk" / "a", tmp_path / "link", tmp_path / "new"
    target.parent.mkdir()
    target.touch()
    link.symlink_to(target)
    run_json(capsys, "train", *TINY, "--steps", 1, "--out", link)
    assert link.is_symlink()
    gp.load(target, "cpu")
    before = os.umask(0o077)
    try:
        run_json(capsys, "train", *TINY, "--steps", 1, "--out", new)
    finally:
        os.umask(before)
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


# --- Other data than MNIST --------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_every_command_walks_to_the_end_on_other_data(capsys, monkeypatch, tmp_path, name):
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    common = ["--device", "cpu", "--data", name]
    row, err = run_json(capsys, "extractor", *common)
    assert "training the feature extractor" in err
    assert Path(row["out"]).is_file()
    again, err = run_json(capsys, "extractor", *common)
    assert (again["extractor"], "training" in err) == (row["extractor"], False)
    gan, measured = tmp_path / "gan.safetensors", ["--samples", 20, "--steps", 2, "--batch-size", 4]
    new = ["--width", 2, "--latent-dim", 4]
    rows = [run_json(capsys, "train", *new, *measured, *common, "--out", gan)[0]]
    rows.append(run_json(capsys, "prune", "--checkpoint", gan, "--sparsity", 0.5, *measured)[0])
    rows.append(run_json(capsys, "evaluate", "--checkpoint", gan, "--samples", 20)[0])
    arguments = ["lottery", *new, *measured, *common, "--rounds", 1, "--out", tmp_path / "tickets"]
    rows += run_json(capsys, *arguments)[0]["rows"]
    assert all(one["data"] == name and one["extractor"] == row["extractor"] for one in rows)
    assert all(one["fid"] > 0 for one in rows)
    run_json(capsys, "sample", "--checkpoint", gan, "--n", 2, "--out", tmp_path / "s.png")
    if name == "cifar10":
        message = fails(capsys, 2, "evaluate", "--checkpoint", "dcgan-mnist", "--data", name)
        assert "argument --data: cifar10 has images of shape (3, 32, 32)" in message


def test_data_root_is_where_the_files_lie(capsys, monkeypatch, tmp_path):
    raw = tmp_path / "da ta" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in (Path(gp.__file__).parent / "assets" / "mnist").glob("*.gz"):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    monkeypatch.chdir(tmp_path)
    arguments = ["train", *TINY, "--steps", 1, "--data", "fashion-mnist", "--data-root", "da ta"]
    row, _ = run_json(capsys, *arguments, "--out", "f")
    assert row["data"] == "fashion-mnist"
    (raw / "train-images-idx3-ubyte").write_bytes(b"cut short")
    assert "fashion-mnist file damaged" in fails(capsys, 1, *arguments, "--out", "g")


# --- Wrong arguments, and what cannot be done -------------------------------------------------------------

WRONG = {
    "": "the following arguments are required: COMMAND",
    "train": "ganprune train: error: the following arguments are required: --out",
    "train --out x --steps -1": "argument --steps: must be an integer of at least 0, got '-1'",
    "train --out x --learning-rate nan": "argument --learning-rate: must be a positive number, got 'nan'",
    "train --out x --precision float64": "argument --precision: invalid choice: 'float64'",
    "train --out x --seed -1": "argument --seed: must be an integer of at least 0",
    "train --out x --device abacus": "device must be 'cpu', 'cuda', 'cuda:N' or 'mps', got 'abacus'",
    "train --out .": "argument --out: must be a file, got the folder '.'",
    "train --out taken/gan": "argument --out: cannot write 'taken/gan'",
    "train --out x.pt": "argument --out: checkpoints are safetensors files, not .pt: name it x.safetensors",
    "train --out taken": "argument --out: 'taken' is no checkpoint and would be replaced",
    "train --out pipe": "argument --out: must be a file, got the device or pipe 'pipe'",
    "train --out x.unfinished": "argument --out: path must not end with .unfinished",
    "sample --out pipe.png": "argument --out: must be a file, got the device or pipe 'pipe.png'",
    "sample --out grid.jpg": "argument --out: must end in .png, got 'grid.jpg'",
    "prune": "one of the arguments --sparsity --threshold --prune-points is required",
    "prune --sparsity 1": "argument --sparsity: must be a number in [0, 1), got '1'",
    "prune --sparsity 0.5 --threshold 1": "argument --threshold: not allowed with argument --sparsity",
    "prune --sparsity 0.5 --samples 4": "argument --samples: must be an integer of at least 6, or 0",
    "prune --sparsity 0.5 --resume": "argument --resume: needs --out",
    "prune --threshold 1 --schedule cubic": "argument --threshold: 1.0 sets the mask before training",
    "prune --allocation 2:4 --score movement": "argument --allocation: 2:4 sets the mask before training",
    "prune --sparsity 0.5 --prune-keep 0.5": "argument --prune-keep: is not used",
    "prune --sparsity 0.5 --schedule cubic --prune-keep 0.5": "argument --prune-keep: is not used",
    "prune --sparsity 0.5 --schedule piecewise": "argument --sparsity: is not used",
    "prune --sparsity 0.5 --schedule geometric --prune-end 4": "argument --prune-end: is not used",
    "prune --schedule piecewise --prune-points 5": "argument --prune-points: must be steps and sparsities",
    "prune --schedule piecewise --prune-points 5:0.5,9:0.4": "argument --prune-points: must rise",
    "prune --sparsity 0.9 --schedule geometric --steps 50": "argument --steps: must be at least 1100",
    "prune --sparsity 0.5 --score movement --steps 0": "argument --steps: must be at least 1",
    "lottery --out x --score movement": "argument --score: must be a score of the trained network",
    "lottery --out taken": "argument --out: must be a folder, got the file 'taken'",
    "lottery --out x --rewind learning-rate --arm shuffled": "argument --arm: shuffled not with --rewind",
    "lottery --out x --checkpoint dcgan-mnist --latent-dim 3": "--latent-dim: not allowed with --checkpoint",
    "evaluate --generator-args {}": "argument --generator-args: needs --generator",
    "evaluate --generator a:B --generator-args []": "argument --generator-args: must be a JSON object",
    "evaluate --generator ab.py:C": "ab.py:C cannot be imported: FileNotFoundError: expected a file at",
    "evaluate --generator ab": "argument --generator: must have the form module:Class or path/to/file.py:Class, got",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_arguments_give_one_sentence_and_code_2(capsys, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file where a folder would have to be")
    for pipe in ("pipe", "pipe.png"):
        os.mkfifo(pipe)
    message = fails(capsys, 2, *arguments.split())
    assert WRONG[arguments] in message
    assert "evaluating" not in message
    assert Path("taken").read_text() == "a file where a folder would have to be"


@pytest.mark.usefixtures("small")
def test_a_schedule_does_not_give_weights_back(capsys, tmp_path, trained):
    half = tmp_path / "half"
    common = [*QUICK, "--steps", 2]
    run_json(capsys, "prune", "--checkpoint", trained, "--sparsity", 0.5, *common, "--out", half)
    again = ["prune", "--checkpoint", half, *common]
    assert "at least 0.5" in fails(capsys, 2, *again, "--sparsity", 0.4)
    message = fails(capsys, 2, *again, "--sparsity", 0.4, "--schedule", "cubic")
    assert "argument --sparsity: must be at least 0.5" in message
    message = fails(capsys, 2, *again, "--sparsity", 0.7, "--score", "movement")
    assert "argument --score: movement needs every weight" in message


def test_what_cannot_be_done_gives_one_sentence_and_code_1(capsys, tmp_path, trained):
    missing, damaged = tmp_path / "missing", tmp_path / "damaged"
    damaged.write_bytes(trained.read_bytes()[:1000])
    assert f"expected a file at {missing}" in fails(capsys, 1, "evaluate", "--checkpoint", missing)
    assert "is not a whole safetensors file" in fails(capsys, 1, "sample", "--checkpoint", damaged)


@pytest.mark.parametrize(
    "schedule", ["", "--schedule cubic --prune-every 2 --prune-end 8", "--score movement"]
)
@pytest.mark.usefixtures("small")
def test_divergence_has_a_code_of_its_own_and_leaves_no_checkpoint(capsys, tmp_path, trained, schedule):
    out = tmp_path / "gan"
    arguments = ["prune", "--checkpoint", trained, "--sparsity", 0.5, *schedule.split(), *QUICK]
    message = fails(capsys, 3, *arguments, "--steps", 10, "--learning-rate", 1e30, "--out", out)
    assert "training diverged" in message
    assert "lower learning_rate" in message
    assert not out.exists()


def test_without_a_home_the_message_names_the_variable(tmp_path):
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "GANPRUNE_CACHE"}
    environment["HOME"] = str(tmp_path / "file" / "home")
    (tmp_path / "file").touch()
    arguments = ["evaluate", "--data", "fashion-mnist", "--samples", 0, "--device", "cpu"]
    process = start(*arguments, env=environment)
    _, err = process.communicate()
    assert (process.returncode, err.count("\n")) == (1, 1)
    assert "GANPRUNE_CACHE" in err


# --- Going on after a stop --------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_bits(capsys, tmp_path, end):
    whole, cut = tmp_path / "run.0", tmp_path / "run.1"
    arguments = ["train", *TINY, "--steps", 400, "--checkpoint-every", 20, "--out"]
    for _ in range(10):  # on a busy machine the run may end before it is stopped
        process = start(*arguments, cut)
        wait_for(unfinished(cut), process)
        process.send_signal(end)
        _, err = process.communicate()
        if not cut.exists():
            break
        cut.unlink()
    else:
        pytest.fail("the run could not be stopped before its end")
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("ganprune: interrupted")
        assert "--resume" in err
        assert str(unfinished(cut)) in err
    assert (
        main([*map(str, arguments), str(whole)]) == 0
    )  # another output, so it does not see the other's file
    assert "add --resume to go on, or delete that file" in fails(capsys, 2, *arguments, cut)
    other = [*arguments, cut, "--resume", "--loss", "minimax"]
    assert "begun with other options (loss was 'non-saturating', is 'minimax')" in fails(capsys, 2, *other)
    _, err = run_json(capsys, *arguments, cut, "--resume")
    assert f"resuming {unfinished(cut)} after step" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.0", "run.1"]
    same_weights(whole, cut)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "options",
    [
        "",
        "--schedule cubic --prune-every 1 --score taylor",
        "--dynamic rigl --prune-every 2",
        "--score movement",
    ],
)
def test_interrupted_pruning_goes_on_to_the_same_bits(capsys, monkeypatch, tmp_path, trained, options):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = ["prune", "--checkpoint", trained, "--sparsity", 0.6, *options.split(), "--steps", 6, *QUICK]
    arguments += ["--checkpoint-every", 3, "--out"]
    run_json(capsys, *arguments, whole)
    save = gp.training.Checkpoint.__call__

    def save_and_stop(self, state):
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gp.training.Checkpoint, "__call__", save_and_stop)
        assert "--resume" in fails(capsys, 130, *arguments, cut)
    run_json(capsys, *arguments, cut, "--resume")
    same_weights(whole, cut)


@pytest.mark.parametrize(
    "entrance", [["-m", "ganprune"], ["-c", "from ganprune.__main__ import main; exit(main())"]]
)
def test_ctrl_c_while_pytorch_is_imported_is_one_line(tmp_path, entrance):
    """In the place of PyTorch there is a module that is interrupted while it is imported, and would take a minute."""
    source = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    (tmp_path / "torch.py").write_text(source)
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, *entrance, "evaluate"],
        env=ENVIRONMENT | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "ganprune: interrupted\n")


@pytest.mark.usefixtures("small")
def test_a_finished_run_is_not_done_again(capsys, tmp_path, trained):
    out = tmp_path / "small"
    arguments = ["prune", "--checkpoint", trained, "--sparsity", 0.6, "--steps", 3, *QUICK, "--out", out]
    first, _ = run_json(capsys, *arguments)
    for more in ([], ["--resume"]):
        again, err = run_json(capsys, *arguments, *more)
        assert "holds this very run, finished" in err
        assert "training" not in err.replace("training_", "")
        assert (again["sparsity"], again["generator_loss"]) == (first["sparsity"], first["generator_loss"])
    assert "begun with other options (steps was 3, is 4" in fails(
        capsys, 2, *arguments, "--steps", 4, "--resume"
    )


@pytest.mark.usefixtures("small")
def test_an_output_has_one_owner(capsys, tmp_path):
    out, folder = tmp_path / "gan", tmp_path / "tickets"
    with owned(out):
        message = fails(capsys, 1, "train", *TINY, "--steps", 1, "--out", out)
    assert str(out) in message
    with owned(folder):
        message = fails(capsys, 1, "lottery", *TINY, "--steps", 1, "--out", folder)
    assert str(folder) in message
    run_json(capsys, "train", *TINY, "--steps", 1, "--out", out)


# --- Lottery tickets --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_lottery_trains_tickets_and_controls_and_goes_on(capsys, tmp_path):
    folder = tmp_path / "tic kets é"
    arms = ["--arm", "shuffled", "--arm", "random", "--arm", "reinitialised"]
    arguments = ["lottery", *TINY, "--steps", 3, "--rounds", 2, "--keep", 0.5, "--out", folder, *arms]
    row, err = run_json(capsys, *arguments)
    assert "9 trainings of 3 steps, 27 steps in all" in err
    controls = ("ticket", "reinitialised", "shuffled", "random")
    expected = [(0, "ticket"), *((number, arm) for number in (1, 2) for arm in controls)]
    assert [(one["round"], one["arm"]) for one in row["rows"]] == expected
    assert all(one["sparsity"] == pytest.approx(1 - 0.5 ** one["round"], abs=1e-3) for one in row["rows"])
    assert f"argument --out: {folder} holds a run; add --resume" in fails(capsys, 2, *arguments)
    message = fails(capsys, 2, *arguments, "--resume", "--keep", 0.7)
    assert "begun with other options (keep was 0.5, is 0.7)" in message
    more, _ = run_json(capsys, *arguments, "--resume", "--rounds", 3)
    assert more["rows"][: len(expected)] == row["rows"]  # nothing is done twice
    assert more["rows"][-1]["sparsity"] == pytest.approx(0.875, abs=1e-2)


@pytest.mark.usefixtures("small")
def test_an_interrupted_lottery_says_how_to_go_on_and_ends_with_the_same_rows(capsys, monkeypatch, tmp_path):
    arguments = [
        "lottery",
        *TINY,
        "--steps",
        3,
        "--rounds",
        1,
        "--arm",
        "shuffled",
        "--checkpoint-every",
        2,
        "--out",
    ]
    whole, _ = run_json(capsys, *arguments, tmp_path / "whole")
    save = gp.training.Checkpoint.__call__

    def save_and_stop(self, state):
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gp.training.Checkpoint, "__call__", save_and_stop)
        message = fails(capsys, 130, *arguments, tmp_path / "cut")
    assert f"{tmp_path / 'cut'} holds the run so far; the same command with --resume" in message
    cut, _ = run_json(capsys, *arguments, tmp_path / "cut", "--resume")
    keys = ("round", "arm", "sparsity", "generator_loss", "discriminator_loss")
    assert [[row[key] for key in keys] for row in cut["rows"]] == [
        [row[key] for key in keys] for row in whole["rows"]
    ]


@pytest.mark.parametrize(
    ("trainings", "said"),
    [
        (1, "the remaining 798 steps take about 13 minutes"),
        (16, "a training takes about 17 minutes, all 16 about 4.4"),
    ],
)
def test_the_first_steps_tell_how_long_it_takes(capsys, monkeypatch, trainings, said):
    monkeypatch.setattr(time, "perf_counter", lambda: float(state.step))  # a step a second
    state, estimate = SimpleNamespace(step=190), Estimate(1_000, trainings)
    for state.step in range(196, 260):
        estimate(state)
    assert said in capsys.readouterr().err


def test_a_second_training_that_starts_where_the_clock_began_starts_it_anew(capsys, monkeypatch):
    now = iter(range(0, 1_000, 10))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    estimate = Estimate(3, 4)
    for step in (1, 2, 3, 1, 1, 1, 2):  # three trainings of few steps: the fifth call begins at step 1
        estimate(SimpleNamespace(step=step))
    assert "a training takes about 30 seconds" in capsys.readouterr().err


# --- Networks of one's own --------------------------------------------------------------------------------

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, latent_dim=5):
        super().__init__()
        self.latent_dim, self.last = latent_dim, nn.Linear(latent_dim, 784)

    def forward(self, z):
        return torch.tanh(self.last(z)).view(-1, 1, 28, 28)

class Flat(Net):
    def forward(self, z):
        return super().forward(z).flatten(1)

class Typo(Net):
    def forward(self, z):
        return self.lst(z)
"""


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A folder with a module of networks, which is the current one; returns the module's name."""
    name = f"own_{tmp_path.name}"
    Path(tmp_path, f"{name}.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.usefixtures("small")
def test_every_command_takes_networks_of_ones_own(capsys, own):
    named = ["--generator", f"{own}:Net"]
    fixed = ["--generator-args", '{"latent_dim": 7}']
    row, _ = run_json(capsys, "train", *named, *fixed, *QUICK, "--steps", 2, "--out", "gan")
    assert (row["generator"], row["parameters"]) == (f"{own}:Net", 8 * 784)
    assert "model" not in row
    row, _ = run_json(
        capsys, "prune", *named, "--checkpoint", "gan", "--sparsity", 0.6, *QUICK, "--steps", 1, "--out", "s"
    )
    assert row["sparsity"] == pytest.approx(0.6, abs=1e-3)
    run_json(capsys, "sample", *named, "--checkpoint", "s", "--n", 4, "--out", "s.png")
    assert "--generator" in fails(capsys, 1, "evaluate", "--checkpoint", "s", "--samples", 0)
    with trust(f"{own}:Net"):
        network = gp.load("s", "cpu").generator
    save_file(network.state_dict(), "w.safetensors")
    row, _ = run_json(
        capsys, "evaluate", *named, *fixed, "--generator-weights", "w.safetensors", "--samples", 0
    )
    assert row["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert "does not fit" in fails(
        capsys, 1, "evaluate", *named, "--generator-weights", "w.safetensors", "--samples", 0
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ("OWN:Flat", "must map latents (N, latent_dim) to images (N, C, H, W), got shape"),
        ("OWN:Typo", "AttributeError"),
        ("OWN:Nothing", "has no class Nothing"),
        ("nowhere:Net", "No module named 'nowhere'"),
    ],
)
def test_networks_of_ones_own_that_do_not_fit(capsys, own, generator, message):
    arguments = ["evaluate", "--generator", generator.replace("OWN", own), "--samples", 0]
    assert message in fails(capsys, 2, *arguments)
