"""The public names: few are flat, the rest by room; all are there, and type checkers see them as what they are."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

import ganprune as gp

ROOT = Path(__file__).resolve().parents[1]

# What a reader meets: a name is flat because it is used here.
READ = sorted([*(ROOT / "notebooks").glob("[0-9]*.ipynb"), *(ROOT / "book").glob("*.md"), ROOT / "README.md"])
NAMED = re.compile(r"(?<![\w/.])gp\.(\w+(?:\.\w+)*)")
# One use of each flat name, as a chapter would write it, and the type that a checker must see.
USES = {
    "adapt": ("gp.adapt(module, latent=8)", "Adapter"),
    "GAN": ("gp.GAN(module, module)", "GAN"),
    "Callback": ("gp.Callback()", "Callback"),
    "Cubic": ("gp.Cubic(0.9, start=0, end=10)", "Cubic"),
    "Evaluate": ("gp.Evaluate(data.validation)", "Evaluate"),
    "GanpruneError": ("gp.GanpruneError()", "GanpruneError"),
    "GradualPruning": ("gp.GradualPruning(gp.Cubic(0.9, start=0, end=10))", "GradualPruning"),
    "Mask": ("gp.Mask.nonzero(module)", "Mask"),
    "TrainConfig": ("gp.TrainConfig(steps=1)", "TrainConfig"),
    "TrainState": ("gp.TrainState(gan, gp.TrainConfig(steps=1))", "TrainState"),
    "allocate": ("gp.allocate(gp.score(module, 'magnitude'), 0.5)", "Mask"),
    "apply_mask": ("gp.apply_mask(module, mask)", "None"),
    "check_mask": ("gp.check_mask(module, mask)", "None"),
    "complexity": ("gp.complexity(module)", "ComplexityReport"),
    "dcgan": ("gp.dcgan()", "GAN"),
    "eval_mode": ("gp.eval_mode(module)", "_GeneratorContextManager"),
    "evaluate": ("gp.evaluate(gan, data.validation)", "FidelityReport"),
    "every": ("gp.every(2, gp.Callback())", "every"),
    "export_onnx": ("gp.export_onnx('file', module)", "OnnxFile"),
    "find_tickets": ("gp.find_tickets(gan, data.train, gp.TrainConfig(steps=1), rounds=2)", "Iterator"),
    "generator_loss": ("gp.generator_loss(gan)", "def"),
    "keep_mask": ("gp.keep_mask(module, mask, optimizer)", "MaskKeeper"),
    "layer_report": ("gp.layer_report(module)", "list"),
    "load": ("gp.load('file')", "GAN"),
    "load_data": ("gp.load_data('mnist')", "ImageData"),
    "load_pretrained": ("gp.load_pretrained('dcgan-mnist')", "GAN"),
    "mlp_gan": ("gp.mlp_gan()", "GAN"),
    "mnist": ("gp.mnist()", "ImageData"),
    "profile": ("gp.profile()", "Profile"),
    "prunable_weights": ("gp.prunable_weights(module)", "dict"),
    "prune": ("gp.prune(gan, sparsity=0.8)", "Mask"),
    "recalibrate_batchnorm": ("gp.recalibrate_batchnorm(module)", "None"),
    "register_layer": ("gp.register_layer(type(module))", "RegisteredLayer"),
    "sample": ("gp.sample(module)", "Tensor"),
    "sample_latents": ("gp.sample_latents(4, 2)", "Tensor"),
    "save": ("gp.save('file', gan)", "None"),
    "score": ("gp.score(module, 'magnitude')", "Scores"),
    "seeded": ("gp.seeded(0)", "Generator"),
    "shrink_channels": ("gp.shrink_channels(module, 0.5)", "Module"),
    "sparse_twin": ("gp.sparse_twin(module)", "SparseTwin"),
    "step_seed": ("gp.step_seed(0, 1)", "int"),
    "train": ("gp.train(state, data.train)", "TrainState"),
}
# The same for names that are reached by room.
BY_ROOM = {
    "channels.compact": ("gp.channels.compact(module)", "CompactionResult"),
    "channels.plan_channels": ("gp.channels.plan_channels(module, 0.5)", "ChannelPlan"),
    "data.cifar10": ("gp.data.cifar10()", "ImageData"),
    "data.fashion_mnist": ("gp.data.fashion_mnist()", "ImageData"),
    "data.gaussian_ring": ("gp.data.gaussian_ring(8, seed=0)", "Tensor"),
    "data.image_folder": ("gp.data.image_folder('folder')", "ImageData"),
    "dynamic.MovementPruning": (
        "gp.dynamic.MovementPruning(gp.Cubic(0.9, start=0, end=10))",
        "MovementPruning",
    ),
    "inference.load_sparse": ("gp.inference.load_sparse('file')", "SparseFile"),
    "inference.save_sparse": ("gp.inference.save_sparse('file', module)", "int"),
    "losses.discriminator_loss": ("gp.losses.discriminator_loss(gan, data.train)", "def"),
    "masks.MaskError": ("gp.masks.MaskError()", "MaskError"),
    "networks.load_weights": ("gp.networks.load_weights(module, 'file')", "str"),
    "pruning.prune_generator": ("gp.pruning.prune_generator(gan, 0.01)", "Mask"),
    "scores.register_score": ("gp.scores.register_score('mine')", "def"),
    "training.Checkpoint": ("gp.training.Checkpoint('file')", "Checkpoint"),
    "training.train_epoch": ("gp.training.train_epoch(state, data.train)", "TrainState"),
}
GIVEN = """
import torch
import ganprune as gp
module: torch.nn.Module = torch.nn.Linear(2, 2)
gan: gp.GAN = gp.dcgan()
data = gp.mnist()
mask = gp.Mask.nonzero(module)
optimizer = torch.optim.SGD(module.parameters())
state = gp.TrainState(gan, gp.TrainConfig(steps=1))
"""


def flat_names() -> set[str]:
    """Return the flat names that are no rooms."""
    rooms = {path.stem for path in (ROOT / "ganprune").iterdir()}
    return set(gp.__all__) - rooms


def by_room() -> list[tuple[str, str]]:
    """Return the rooms with the names that only they have."""
    rooms = [(room, getattr(gp, room)) for room in gp.__all__ if room not in flat_names()]
    names = [(room, name) for room, module in rooms for name in getattr(module, "__all__", ())]
    return [(room, name) for room, name in names if name not in gp.__all__]


def test_few_names_are_flat_and_each_is_used_in_a_chapter_or_on_a_page() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in READ)
    used = {name.partition(".")[0] for name in NAMED.findall(text)}
    assert sorted(flat_names() - used) == []
    assert len(flat_names()) <= 45
    assert flat_names() == set(USES)


@pytest.mark.parametrize("path", [*READ, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_every_name_in_a_chapter_or_on_a_page_is_there(path: Path) -> None:
    for name in sorted(set(NAMED.findall(path.read_text(encoding="utf-8")))):
        found: object = gp
        for part in name.split("."):
            if not isinstance(found, ModuleType):
                break  # of a class or of what a call gives back
            assert hasattr(found, part), f"gp.{name}"
            found = getattr(found, part)


def test_the_import_of_the_package_alone_opens_every_room() -> None:
    uses = "; ".join(f"gp.{room}.{name}" for room, name in by_room())
    done = subprocess.run(
        [sys.executable, "-c", f"import ganprune as gp; {uses}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_error_for_a_name_that_is_not_flat_says_which_room_has_it() -> None:
    assert ("inference", "save_sparse") in by_room()
    for room, name in by_room():
        with pytest.raises(AttributeError, match=rf"attribute {name}: it is gp\.{room}\.{name}$"):
            getattr(gp, name)
    with pytest.raises(AttributeError, match="attribute Tensor$"):
        _ = gp.Tensor


def test_a_wrong_name_imports_nothing() -> None:
    program = "import sys, ganprune as gp; print(hasattr(gp, 'save_sparse'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("name", sorted(gp.__all__))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(gp, name) is not None
    assert name in dir(gp)


def test_a_type_checker_sees_the_type_of_each(tmp_path: Path) -> None:
    uses = USES | BY_ROOM
    lines = [f"reveal_type({use})  # {name}" for name, (use, _) in uses.items()]
    wrong = ["gp.prune(gan, sparsity='much')", "gp.train(gan)", "gp.no_such_name", "gp.save_sparse"]
    source = tmp_path / "uses.py"
    source.write_text(textwrap.dedent(GIVEN) + "\n".join([*lines, *wrong]) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    first = len(textwrap.dedent(GIVEN).splitlines()) + 1
    messages: dict[int, str] = {}
    for number, message in re.findall(r"uses\.py:(\d+): (.*)", done.stdout):
        messages[int(number)] = messages.get(int(number), "") + message
    for number, (name, (_, kind)) in enumerate(uses.items(), first):
        revealed = messages[number]
        assert not revealed.startswith("error"), (name, revealed)
        assert "Revealed type is" in revealed and kind in revealed and '"Any"' not in revealed, (
            name,
            revealed,
        )
    for number in range(first + len(uses), first + len(uses) + len(wrong)):
        assert messages[number].startswith("error"), wrong[number - first - len(uses)]
