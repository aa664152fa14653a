"""The flat names: few, all there, and seen by type checkers as what they are."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import ganprune as gp

ROOT = Path(__file__).resolve().parents[1]

# One use of each flat name, as a chapter would write it, and the type that a checker must see.
USES = {
    "adapt": ("gp.adapt(module, latent=8)", "Adapter"),
    "GAN": ("gp.GAN(module, module)", "GAN"),
    "Callback": ("gp.Callback()", "Callback"),
    "Checkpoint": ("gp.Checkpoint('file')", "Checkpoint"),
    "Cubic": ("gp.Cubic(0.9, start=0, end=10)", "Cubic"),
    "Evaluate": ("gp.Evaluate(data.validation)", "Evaluate"),
    "GanpruneError": ("gp.GanpruneError()", "GanpruneError"),
    "GradualPruning": ("gp.GradualPruning(gp.Cubic(0.9, start=0, end=10))", "GradualPruning"),
    "Mask": ("gp.Mask.nonzero(module)", "Mask"),
    "MaskError": ("gp.MaskError()", "MaskError"),
    "MovementPruning": ("gp.MovementPruning(gp.Cubic(0.9, start=0, end=10))", "MovementPruning"),
    "TrainConfig": ("gp.TrainConfig(steps=1)", "TrainConfig"),
    "TrainState": ("gp.TrainState(gan, gp.TrainConfig(steps=1))", "TrainState"),
    "allocate": ("gp.allocate(gp.score(module, 'magnitude'), 0.5)", "Mask"),
    "apply_mask": ("gp.apply_mask(module, mask)", "None"),
    "check_mask": ("gp.check_mask(module, mask)", "None"),
    "cifar10": ("gp.cifar10()", "ImageData"),
    "compact": ("gp.compact(module)", "CompactionResult"),
    "complexity": ("gp.complexity(module)", "ComplexityReport"),
    "dcgan": ("gp.dcgan()", "GAN"),
    "discriminator_loss": ("gp.discriminator_loss(gan, data.train)", "def"),
    "eval_mode": ("gp.eval_mode(module)", "_GeneratorContextManager"),
    "evaluate": ("gp.evaluate(gan, data.validation)", "FidelityReport"),
    "every": ("gp.every(2, gp.Callback())", "every"),
    "export_onnx": ("gp.export_onnx('file', module)", "OnnxFile"),
    "fashion_mnist": ("gp.fashion_mnist()", "ImageData"),
    "find_tickets": ("gp.find_tickets(gan, data.train, gp.TrainConfig(steps=1), rounds=2)", "Iterator"),
    "gaussian_ring": ("gp.gaussian_ring(8, seed=0)", "Tensor"),
    "generator_loss": ("gp.generator_loss(gan)", "def"),
    "image_folder": ("gp.image_folder('folder')", "ImageData"),
    "keep_mask": ("gp.keep_mask(module, mask, optimizer)", "MaskKeeper"),
    "layer_report": ("gp.layer_report(module)", "list"),
    "load": ("gp.load('file')", "GAN"),
    "load_data": ("gp.load_data('mnist')", "ImageData"),
    "load_pretrained": ("gp.load_pretrained('dcgan-mnist')", "GAN"),
    "load_sparse": ("gp.load_sparse('file')", "SparseFile"),
    "load_weights": ("gp.load_weights(module, 'file')", "str"),
    "mlp_gan": ("gp.mlp_gan()", "GAN"),
    "mnist": ("gp.mnist()", "ImageData"),
    "plan_channels": ("gp.plan_channels(module, 0.5)", "ChannelPlan"),
    "profile": ("gp.profile()", "Profile"),
    "prunable_weights": ("gp.prunable_weights(module)", "dict"),
    "prune": ("gp.prune(gan, sparsity=0.8)", "Mask"),
    "prune_generator": ("gp.prune_generator(gan, 0.01)", "Mask"),
    "recalibrate_batchnorm": ("gp.recalibrate_batchnorm(module)", "None"),
    "register_layer": ("gp.register_layer(type(module))", "RegisteredLayer"),
    "register_score": ("gp.register_score('mine')", "def"),
    "sample": ("gp.sample(module)", "Tensor"),
    "sample_latents": ("gp.sample_latents(4, 2)", "Tensor"),
    "save": ("gp.save('file', gan)", "None"),
    "save_sparse": ("gp.save_sparse('file', module)", "int"),
    "score": ("gp.score(module, 'magnitude')", "Scores"),
    "seeded": ("gp.seeded(0)", "Generator"),
    "shrink_channels": ("gp.shrink_channels(module, 0.5)", "Module"),
    "sparse_twin": ("gp.sparse_twin(module)", "SparseTwin"),
    "step_seed": ("gp.step_seed(0, 1)", "int"),
    "train": ("gp.train(state, data.train)", "TrainState"),
    "train_epoch": ("gp.train_epoch(state, data.train)", "TrainState"),
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


def test_the_flat_names_are_those_that_chapters_use_often() -> None:
    assert flat_names() == set(USES)
    assert len(USES) <= 60


@pytest.mark.parametrize("name", sorted(gp.__all__))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(gp, name) is not None
    assert name in dir(gp)


def test_a_type_checker_sees_the_type_of_each(tmp_path: Path) -> None:
    lines = [f"reveal_type({use})  # {name}" for name, (use, _) in USES.items()]
    wrong = ["gp.prune(gan, sparsity='much')", "gp.train(gan)", "gp.no_such_name"]
    source = tmp_path / "uses.py"
    source.write_text(textwrap.dedent(GIVEN) + "\n".join([*lines, *wrong]) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    first = len(textwrap.dedent(GIVEN).splitlines()) + 1
    messages: dict[int, str] = {}
    for number, message in re.findall(r"uses\.py:(\d+): (.*)", done.stdout):
        messages[int(number)] = messages.get(int(number), "") + message
    for number, (name, (_, kind)) in enumerate(USES.items(), first):
        revealed = messages[number]
        assert not revealed.startswith("error"), (name, revealed)
        assert "Revealed type is" in revealed and kind in revealed and '"Any"' not in revealed, (
            name,
            revealed,
        )
    for number in range(first + len(USES), first + len(USES) + len(wrong)):
        assert messages[number].startswith("error"), wrong[number - first - len(USES)]
