"""One adapter for networks of any form: what it draws, what it picks, and that everything understands it."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tools.small_data import small_data
from torch import Tensor, nn

import ganprune as gp
from ganprune.__main__ import main
from ganprune.channels import ChannelError
from ganprune.core.tensors import CheckpointError
from ganprune.networks import Adapter, CustomSpec, check_generator, draw_inputs, trust
from ganprune.networks.adapter import pick


class Conditional(nn.Module):
    """Takes maps of one pixel, labels and noise; gives [0, 1] images in a dictionary."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.classes = nn.Embedding(10, 4)
        self.first, self.last = nn.ConvTranspose2d(12, width, 7), nn.ConvTranspose2d(width, 1, 4, 4)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, z: Tensor, label: Tensor, noise: Tensor) -> dict[str, Tensor]:
        h = self.first(torch.cat([z, self.classes(label)[:, :, None, None]], 1))
        return {"features": h, "image": torch.sigmoid(self.last(torch.relu(self.norm(h) + noise)))}


class Judge(nn.Module):
    """Takes images in [0, 255] and gives a tuple, the logits as (N, 1, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 4, 4), nn.Conv2d(8, 1, 7)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.first(images / 255))
        return h, self.last(h)


OPTIONS = {"latent": (8, 1, 1), "labels": 10, "noise": (1, 7, 7), "output": "image", "image_range": (0, 1)}


def conditional() -> Adapter:
    torch.manual_seed(0)
    return gp.adapt(Conditional(), **OPTIONS)  # type: ignore[arg-type]


@pytest.fixture
def gan() -> gp.GAN:
    generator = conditional()
    return gp.GAN(generator, gp.adapt(Judge(), output=1, image_range=(0, 255)))


def test_one_seed_gives_one_result_and_every_part_is_used() -> None:
    generator = conditional()
    random = torch.get_rng_state()
    images = gp.sample(generator, 12, seed=3)
    torch.testing.assert_close(images, gp.sample(generator, 12, seed=3, batch_size=5))
    assert not torch.equal(images, gp.sample(generator, 12, seed=4))
    assert torch.equal(random, torch.get_rng_state())
    z, labels, noise = draw_inputs(generator, 12, seed=3)
    with gp.eval_mode(generator), torch.no_grad():
        assert torch.equal(images, generator.network(z, labels, noise)["image"] * 2 - 1)
    assert (z.shape, noise.shape) == ((12, 8, 1, 1), (12, 1, 7, 7))
    assert torch.equal(z.flatten(1), gp.sample_latents(12, 8, seed=3))
    many = draw_inputs(generator, 5_000)
    assert torch.bincount(many[1], minlength=10).min() > 400
    assert many[2].mean().abs() < 0.02


def test_labels_may_be_chosen() -> None:
    generator = conditional()
    z, _, noise = draw_inputs(generator, 6)
    with gp.eval_mode(generator), torch.no_grad():
        expected = generator(z, torch.full((6,), 7), noise)
    assert torch.equal(gp.sample(generator, 6, labels=7), expected)
    assert torch.equal(gp.sample(generator, labels=torch.full((6,), 7), latents=z), expected)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\), got 10"):
        gp.sample(generator, 6, labels=10)
    with pytest.raises(ValueError, match="labels must be None: the network takes none"):
        gp.sample(gp.adapt(nn.Linear(3, 2), 3), 6, labels=1)


class Shifted(nn.Module):
    """Adds a vector for its class to a latent of three numbers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(classes, 3), nn.Linear(3, 2)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.layer(z + self.table(label))


def test_labels_in_rows() -> None:
    rows = gp.adapt(nn.Bilinear(3, 5, 2), 3, 5, one_hot=True)
    assert gp.sample(rows, 4).shape == (4, 2)
    label = draw_inputs(rows, 4)[1]
    assert torch.equal(label.sum(1), torch.ones(4))
    assert torch.equal(draw_inputs(gp.adapt(Shifted(5), 3, 5), 4)[1], label.argmax(1))


def test_the_gan_trains_prunes_and_measures(gan: gp.GAN) -> None:
    data = small_data()
    mask = gp.prune(gan, 0.6, score="taylor")
    assert list(mask) == ["first.weight", "last.weight"]  # the names of the bare network
    gp.train(gp.TrainState(gan, gp.TrainConfig(steps=2, batch_size=8)), data.train, show_progress=False)
    gp.check_mask(gan.generator.network, mask)
    gp.apply_mask(Conditional(), mask)
    gp.recalibrate_batchnorm(gan.generator, batches=2, batch_size=8)
    report = gp.evaluate(gan, data.validation, samples=20)
    assert report.real_loss is not None and report.fid is not None
    bare = gp.complexity(gan.generator.network, inputs=draw_inputs(gan.generator, 1), batch_size=None)
    found = gp.complexity(gan.generator, batch_size=None)
    assert (found.macs, found.parameters, found.prunable_layers) == (
        bare.macs,
        bare.parameters,
        bare.prunable_layers,
    )


def test_scores_are_those_of_the_bare_network(gan: gp.GAN) -> None:
    generator = gan.generator
    inputs = draw_inputs(generator, 16)
    for name in ("magnitude", "synflow", "wanda"):
        given = {} if name == "magnitude" else {"inputs": inputs}
        wanted = gp.score(generator.network, name, **given)
        found = gp.score(generator, name, **({} if name == "synflow" else given))
        assert all(torch.equal(wanted[key], found[key]) for key in wanted), name


def test_channels_are_shrunk_inside_of_it(gan: gp.GAN) -> None:
    loss_fn = gp.generator_loss(gan, 2, 8)
    for options in ({}, {"importance": "taylor", "loss_fn": loss_fn}):
        small = gp.shrink_channels(gan.generator, 0.5, **options)
        assert isinstance(small, Adapter)
        assert small.network.first.out_channels == 4
        assert gp.sample(small, 3).shape == (3, 1, 28, 28)
    with pytest.raises(ChannelError, match="first: these channels reach the network's output"):
        gp.shrink_channels(gan.generator.network, 0.5, inputs=draw_inputs(gan.generator, 2))
    assert isinstance(gp.channels.compact(gan.generator).network, Adapter)


def test_ranges_are_declared_and_never_guessed() -> None:
    for end in (1, 255):
        network = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Unflatten(1, (1, 2, 2)))
        scaled = network if end == 1 else nn.Sequential(network, _Times(255.0))
        adapted = gp.adapt(scaled, 3, image_range=(0, end))
        assert check_generator(adapted) == (1, 2, 2)
        with gp.eval_mode(adapted), torch.no_grad():
            expected = network(draw_inputs(adapted, 5)[0]) * 2 - 1
        torch.testing.assert_close(gp.sample(adapted, 5), expected)
    with pytest.raises(ValueError, match=r"declare what it gives: gp.adapt\(network, image_range="):
        check_generator(gp.adapt(scaled, 3))
    wild = gp.adapt(nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (1, 2, 2)), _Times(9.0)), 3, clamp=True)
    assert check_generator(wild) == (1, 2, 2)
    assert wild.train()(torch.ones(1, 3) * 9).abs().max() > 1  # training sees the gradient


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_discriminators_get_images_in_their_range_and_give_logits() -> None:
    judge = Judge()
    adapted = gp.adapt(judge, output=1, image_range=(0, 255))
    images = torch.rand(5, 1, 28, 28) * 2 - 1
    assert torch.allclose(adapted(images), judge((images + 1) * 127.5)[1].flatten())
    with pytest.raises(ValueError, match="latent must be given .* with labels or noise"):
        gp.adapt(judge, labels=3)


def test_networks_from_image_to_image_draw_from_images() -> None:
    data = small_data().train
    network = gp.adapt(
        nn.Sequential(nn.Conv2d(1, 4, 3, 1, 1), nn.Tanh(), nn.Conv2d(4, 1, 3, 1, 1)), inputs=data
    )
    assert gp.sample(network, 5, seed=2).shape == (5, 1, 28, 28)
    assert torch.equal(draw_inputs(network, 5, seed=2)[0], data.batch(5, 2, 0))
    rows = gp.adapt(network.network, inputs=data.float_images())
    (drawn,) = draw_inputs(rows, 5)
    assert all((row == data.float_images()).flatten(1).all(1).any() for row in drawn)
    assert gp.shrink_channels(network, 0.5).network[0].out_channels == 2
    assert gp.complexity(network, batch_size=None).macs == 2 * 36 * 28 * 28
    assert gp.GAN(network, Judge()).generator_ema.inputs is network.inputs

    def several(n: int, seed: int) -> tuple[list[Tensor], float]:
        return [torch.full((n, 3), float(seed))], 0.5

    class Lists(nn.Linear):
        def forward(self, styles: list[Tensor], factor: float) -> Tensor:
            return super().forward(styles[0]) * factor

    listed = gp.adapt(Lists(3, 2), inputs=several)
    assert torch.equal(gp.sample(listed, 5, seed=1), gp.sample(listed, 5, seed=1, batch_size=2))


def test_parts_of_the_output() -> None:
    assert pick((1, 2), 1) == pick({"a": 2}, "a") == pick(SimpleNamespace(a=2), "a") == pick([2], max) == 2
    with pytest.raises(ValueError, match="a mapping with 'image'; got 'images'"):
        pick({"image": 1}, "images")
    with pytest.raises(ValueError, match="a tuple of 2; got 3"):
        pick((1, 2), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "latent must be an integer of at least 1, got 0"),
        ({"latent": 3, "labels": -1}, "labels must be an integer of at least 0"),
        ({"latent": 3, "noise": (1, 0)}, "noise must be an integer of at least 1, got 0"),
        ({"latent": 3, "image_range": (1, 0)}, r"image_range must be \(lowest, highest\), got \(1, 0\)"),
        ({"latent": 3, "image_range": (0, float("inf"))}, "image_range must be in"),
        ({"latent": 3, "image_range": (0, 1j)}, "image_range must be a number in"),
        ({"latent": 3, "image_range": 1}, r"image_range must be \(lowest, highest\), got 1"),
        ({"latent": 3 + 0j}, r"latent must be an integer of at least 1, got \(3\+0j\)"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gp.adapt(nn.Linear(3, 2), **options)


class OneHot(nn.Bilinear):
    """Takes a latent of three numbers and a row for each of five classes."""

    def __init__(self) -> None:
        super().__init__(3, 5, 2)


MISFITS = {
    "length": (
        nn.Linear(3, 2),
        {"latent": 4},
        r"latent must be what Linear takes, got latents \(2, 4\), .*cannot",
    ),
    "maps": (
        nn.ConvTranspose2d(3, 2, 4),
        {"latent": 3},
        r"latents \(2, 3\), .*; latent=\(3, 1, 1\) is taken",
    ),
    "vectors": (nn.Bilinear(3, 3, 2), {"latent": (3, 1, 1), "noise": 3}, r"; latent=\(3,\) is taken"),
    "no labels": (Shifted(5), {"latent": 3}, r"latents \(2, 3\), with which it fails: TypeError: .*'label'"),
    "unasked labels": (
        nn.Linear(3, 2),
        {"latent": 3, "labels": 5},
        r"latent and labels must be what Linear takes",
    ),
    "too many labels": (
        Shifted(5),
        {"latent": 3, "labels": 6},
        "labels must be at most .* Shifted has, got 6: .* 5 fails",
    ),
    "rows": (OneHot(), {"latent": 3, "labels": 5}, r"labels \(2,\), .*; one_hot=True is taken"),
    "noise": (
        nn.Bilinear(3, 5, 2),
        {"latent": 3, "noise": 4},
        r"latent and noise must be .*noise_0 \(2, 4\)",
    ),
    "inputs": (
        nn.Linear(3, 2),
        {"inputs": torch.zeros(9, 4)},
        r"inputs must be what Linear takes, got inputs \(2, 4\)",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_options_that_do_not_fit_the_network_are_named_in_one_sentence(name: str) -> None:
    network, options, message = MISFITS[name]
    state, random = {key: value.clone() for key, value in network.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as caught:
        gp.adapt(network, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 450
    assert network.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_latents_of_an_adapted_generator_have_its_shape() -> None:
    for bad in (torch.zeros(4, 8), torch.zeros(4, 9, 1, 1), torch.zeros(8, 1, 1)):
        with pytest.raises(ValueError, match=r"latents must have shape \(N, 8, 1, 1\), got "):
            gp.sample(conditional(), latents=bad)


DECLARED = {
    "tanh as -1 to 100": (nn.Tanh(), (-1, 100), True),
    "tanh as 0 to 255, clamped": (nn.Tanh(), (0, 255), True),
    "sigmoid as 0 to 255": (nn.Sigmoid(), (0, 255), True),
    "sigmoid as 0 to 100": (nn.Sigmoid(), (0, 100), True),
    "sigmoid as 0 to 1": (nn.Sigmoid(), (0, 1), False),
    "sigmoid as -1 to 1": (nn.Sigmoid(), (-1, 1), False),
    "tanh as normalised colours": (nn.Tanh(), (-2.2, 2.7), False),
}


@pytest.mark.parametrize("name", DECLARED)
@pytest.mark.parametrize("size", [0.0, 1e-3, 3.0])
def test_a_range_that_is_far_too_wide_is_noticed(name: str, size: float) -> None:
    """Also of an untrained generator, all of whose values lie close together; and what fits never warns."""
    last, image_range, wide = DECLARED[name]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 16), _Times(size), last, nn.Unflatten(1, (1, 4, 4)))
    adapted = gp.adapt(network, 3, image_range=image_range, clamp=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gp.sample(adapted, 64)
    assert len(caught) == wide
    if wide:
        message = str(caught[0].message)
        assert f"next to nothing of the declared image_range=({float(image_range[0])}, " in message
        assert caught[0].filename == __file__ and "\n" not in message


@pytest.mark.parametrize("size", [1e-3, 3.0])
def test_images_of_0_to_255_never_warn(size: float) -> None:
    network = nn.Sequential(
        nn.Linear(3, 16), _Times(size), nn.Sigmoid(), _Times(255.0), nn.Unflatten(1, (1, 4, 4))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gp.sample(gp.adapt(network, 3, image_range=(0, 255)), 64)


def test_a_range_that_does_not_fit_is_said_in_the_networks_own_values() -> None:
    network = nn.Sequential(nn.Linear(3, 16), _Times(9.0), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)))
    with pytest.raises(ValueError, match=r"must give images in \[0, 255\], got values from -\d\.?\d* to \d"):
        check_generator(gp.adapt(network, 3, image_range=(0, 255)))


def test_what_cannot_be_adapted() -> None:
    with pytest.raises(ValueError, match="adapted already"):
        gp.adapt(conditional())
    with pytest.raises(TypeError, match="network must be a torch.nn.Module, got int"):
        gp.adapt(3)  # type: ignore[arg-type]
    with pytest.raises(ChannelError):
        gp.shrink_channels(gp.adapt(nn.Linear(3, 2), 3), 0.5)


def adapted_function(width: int = 8) -> Adapter:
    return gp.adapt(Conditional(width), **OPTIONS)  # type: ignore[arg-type]


@pytest.mark.parametrize("outside", [False, True])
def test_adapted_gans_are_saved_and_loaded(tmp_path: Path, outside: bool) -> None:
    """With the adapter around a spec, and with a spec whose function gives the adapter."""
    here = f"{__name__}:Conditional", f"{__name__}:adapted_function"
    with trust(*here):
        spec = CustomSpec(here[not outside], {"width": 6})
        network = spec.build()
        generator = gp.adapt(network, **OPTIONS) if outside else network  # type: ignore[arg-type]
        discriminator = gp.adapt(gp.dcgan(width=4, device="cpu").discriminator)
        gan = gp.GAN(generator, discriminator)
        gp.prune(gan, 0.5)
        gp.save(tmp_path / "a.safetensors", gan)
        loaded = gp.load(tmp_path / "a.safetensors", "cpu")
    assert isinstance(loaded.generator, Adapter)
    assert isinstance(loaded.discriminator, Adapter)
    assert loaded.masks["generator"] == gan.masks["generator"]
    assert torch.equal(gp.sample(loaded.generator, 4), gp.sample(gan.generator, 4))
    with pytest.raises(CheckpointError, match="imported only where you name it yourself"):
        gp.load(tmp_path / "a.safetensors", "cpu")


def test_what_no_file_could_rebuild_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Adapter\) has no spec"):
        gp.save(
            tmp_path / "a.safetensors", gp.GAN(conditional(), gp.dcgan(width=4, device="cpu").discriminator)
        )


REPOSITORY = """
import torch
from torch import nn
{line}

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Linear(SIZE, width), nn.Linear(width, 784)

    def forward(self, z, label):
        return z, torch.sigmoid(self.last(torch.relu(self.first(z)))).view(-1, 1, 28, 28)
"""
FUNCTION = """
import ganprune as gp

def adapted(width=9):
    return gp.adapt(Net(width), 5, labels=3, output=1, image_range=(0, 1))
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders with code of other people: one of loose files, one a package with relative imports."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    for folder, line in (("loose", "from sizes_of_loose import SIZE"), ("theirs", "from .sizes import SIZE")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.py").write_text(REPOSITORY.format(line=line) + FUNCTION)
    (tmp_path / "loose" / "sizes_of_loose.py").write_text("SIZE = 5")
    (tmp_path / "theirs" / "sizes.py").write_text("SIZE = 5")
    (tmp_path / "theirs" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("folder", ["loose", "theirs"])
def test_files_of_other_folders_are_named_by_their_path(
    repository: Path, folder: str, tmp_path: Path
) -> None:
    path = f"{folder}/model.py:adapted"
    with trust(path):
        gan = gp.GAN(CustomSpec(path).build(), gp.dcgan(width=4, device="cpu").discriminator)
        assert check_generator(gan.generator) == (1, 28, 28)
        gp.save("gan.safetensors", gan)
    moved = tmp_path / "moved"
    (repository / folder).rename(moved)
    with trust(f"{moved}/model.py:adapted"):  # a file is known by its name
        loaded = gp.load("gan.safetensors", "cpu")
    assert torch.equal(gp.sample(loaded.generator, 3), gp.sample(gan.generator, 3))
    for other in ("moved/other.py:adapted", "moved/model.py:Net"):
        with trust(other), pytest.raises(CheckpointError, match="imported only where you name it"):
            gp.load("gan.safetensors", "cpu")


def test_files_that_cannot_be_imported_are_named(repository: Path) -> None:
    for path, message in (
        ("nowhere/model.py:Net", "expected a file at"),
        ("loose/model.py:Nothing", "file loose/model.py has no class Nothing"),
    ):
        with trust(path), pytest.raises(ValueError, match=message):
            CustomSpec(path).build()
    with pytest.raises(ValueError, match=r"path must have the form module:Class or path/to/file.py:Class"):
        CustomSpec("model.py")


def test_the_command_line_takes_files_of_other_repositories(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--generator", "loose/model.py:adapted", "--generator-args", '{"width": 6}']
    common = ["--device", "cpu", "--seed", "0", "--json"]
    brief = ["--steps", "2", "--batch-size", "8", "--samples", "0", *common]
    assert main(["train", *named, "--width", "4", "--out", "a.safetensors", *brief]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["parameters"], row["generator"]) == (6 * (5 + 1) + 784 * (6 + 1), "loose/model.py:adapted")
    to = ["--checkpoint", "a.safetensors", "--sparsity", "0.5", "--score", "taylor", "--out", "b.safetensors"]
    assert main(["prune", *named[:2], *to, *brief]) == 0
    assert json.loads(capsys.readouterr().out)["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert main(["sample", *named[:2], "--checkpoint", "b.safetensors", "--n", "4", *common]) == 0
    with trust(*named[1:2]):
        state = gp.load("b.safetensors", "cpu").generator.network.state_dict()
    torch.save({"g_ema": state, "d": {"weight": torch.ones(2, 2)}}, "w.pt")
    weights = ["--generator-weights", "w.pt"]
    assert main(["evaluate", *named, *weights, "--samples", "0", *common]) == 0
    shown = capsys.readouterr()
    assert "generator has the weights 'g_ema' of w.pt" in shown.err
    assert json.loads(shown.out.splitlines()[-1])["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert (
        main(["evaluate", *named, *weights, "--generator-weights-key", "g", "--samples", "0", *common]) == 1
    )
    assert "has no state dict 'g'; it has 'g_ema', 'd'" in capsys.readouterr().err
    assert main(["evaluate", "--generator", "loose/model.py:Net", "--samples", "0", *common]) == 2
    assert "loose/model.py:Net with arguments {} could not be built" in capsys.readouterr().err
