"""ONNX files and twins of adapted generators: one input for each argument, and reasons that name the layer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from tools.channel_networks import Do
from tools.inference_networks import Shaped
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

import ganprune as gp
from ganprune.__main__ import main
from ganprune.inference import ExportError, InferenceError, trace_program


class Labelled(nn.Module):
    """A conditional generator of 0 to 255, in a dictionary: labels as integers or rows, and perhaps two noises."""

    def __init__(self, one_hot: bool = False, joined: bool = False, noises: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one_hot, self.joined = one_hot, joined
        self.embed = nn.Linear(3, 6, bias=False) if one_hot else nn.Embedding(3, 6)
        self.first = spectral_norm(nn.Linear(12 if joined else 6, 4 * 4))
        self.norm, self.up = nn.BatchNorm2d(1), nn.ConvTranspose2d(1, 2, 4, 2, 1)
        self.strength = nn.Parameter(torch.full((max(noises, 1),), 0.3))

    def forward(self, z: Tensor, label: Tensor, *noises: Tensor) -> dict[str, Any]:
        assert label.is_floating_point() == self.one_hot
        found = self.embed(label)
        h = self.norm(self.first(torch.cat([z, found], 1) if self.joined else z * found).view(-1, 1, 4, 4))
        for strength, noise in zip(self.strength, noises, strict=False):
            h = h + strength * noise
        return {"image": 255 * torch.sigmoid(self.up(h.relu())), "label": label}


def labelled(one_hot: bool = False, joined: bool = False, noises: int = 0) -> Any:
    """Return it in its adapter."""
    network = Labelled(one_hot, joined, noises)
    return gp.adapt(
        network,
        6,
        3,
        one_hot=one_hot,
        noise=[(1, 4, 4)] * noises,
        output="image",
        image_range=(0, 255),
    )


def from_file(path: Path, network: nn.Module, n: int, seed: int) -> Tensor:
    """Return the images that ONNX Runtime makes of what ``gp.sample`` draws."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    drawn = gp.networks.draw_inputs(network, n, seed)
    fed = {name: one.numpy() for name, one in zip(names, drawn, strict=True)}
    return torch.from_numpy(session.run(["images"], fed)[0])


@pytest.mark.parametrize("options", [(False, False, 0), (True, False, 0), (False, True, 2), (True, True, 1)])
def test_each_argument_is_an_input_and_they_share_the_batch(
    options: tuple[bool, bool, int], tmp_path: Path
) -> None:
    network, path = labelled(*options), tmp_path / "g.onnx"
    mask = gp.prune(network, 0.5)
    done = gp.export_onnx(path, network, mask)
    assert done.inputs == ("latents", "labels", *(f"noise_{number}" for number in range(options[2])))
    graph = onnx.load(str(path)).graph
    assert [one.name for one in graph.input] == list(done.inputs)
    kinds = [one.type.tensor_type.elem_type for one in graph.input]
    assert kinds[1] == (onnx.TensorProto.FLOAT if options[0] else onnx.TensorProto.INT64)
    assert {one.type.tensor_type.shape.dim[0].dim_param for one in graph.input} == {"batch"}
    for n in (1, 2, 5, 256):
        images = from_file(path, network, n, seed=n)
        expected = gp.sample(network, n, seed=n)
        assert images.shape == expected.shape == (n, 2, 8, 8)
        assert float((images - expected).abs().max()) <= 1e-5
        assert -1 <= float(images.min()) < float(images.max()) <= 1


def test_images_to_start_from_and_several_of_them(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    one = gp.adapt(
        nn.Sequential(conv, nn.Tanh()), inputs=torch.rand(5, 3, 4, 4, generator=gp.seeded(0)) * 2 - 1
    )
    assert gp.export_onnx(tmp_path / "one.onnx", one).inputs == ("inputs",)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, image: Tensor, style: Tensor, z: Tensor) -> Tensor:
            return torch.tanh(self.conv(image) * style[:, :, None, None] + z)

    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        source = gp.seeded(seed)
        return torch.randn(n, 3, 4, 4, generator=source), torch.randn(n, 3, generator=source)

    two = gp.adapt(Two(), (3, 1, 1), inputs=draw)
    path = tmp_path / "two.onnx"
    assert gp.export_onnx(path, two).inputs == ("inputs_0", "inputs_1", "latents")
    assert float((from_file(path, two, 7, 3) - gp.sample(two, 7, 3)).abs().max()) <= 1e-5

    odd = gp.adapt(Two(), inputs=lambda n, seed: (*draw(n, seed), torch.tensor(0.5)))
    with pytest.raises(
        ExportError, match=r"inputs of Two must be tensors with one row for each image, got \(\)"
    ):
        gp.export_onnx(path, odd)


def test_an_argument_that_is_not_read_is_an_input_too(tmp_path: Path) -> None:
    network = gp.adapt(Labelled(), 6, 3, noise=(1, 4, 4), output="image", image_range=(0, 255))
    network.network.strength = nn.Parameter(torch.zeros(0))
    path = tmp_path / "g.onnx"
    assert gp.export_onnx(path, network).inputs == ("latents", "labels", "noise_0")
    assert float((from_file(path, network, 4, 1) - gp.sample(network, 4, 1)).abs().max()) <= 1e-5


def test_wrapped_networks_and_layers_that_nobody_registered(tmp_path: Path) -> None:
    network = labelled()
    wrapped = torch.optim.swa_utils.AveragedModel(network)
    gp.export_onnx(tmp_path / "g.onnx", wrapped)
    assert (
        float((from_file(tmp_path / "g.onnx", network, 4, 1) - gp.sample(network, 4, 1)).abs().max()) <= 1e-5
    )

    class Own(nn.Module):
        latent_dim = 3

        def __init__(self) -> None:
            super().__init__()
            self.scales = nn.Parameter(torch.rand(3))

        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(z * self.scales)

    done = gp.export_onnx(tmp_path / "own.onnx", Own())
    assert done.sparsity is None
    assert {one.key for one in onnx.load(str(done.path)).metadata_props} == {"ganprune"}


class Noisy(nn.Module):
    """It draws random numbers, all the time or in training alone."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 4), Do(lambda x: x + torch.randn_like(x[:, :1]) * always)])

    def forward(self, z: Tensor) -> Tensor:
        for layer in self.layers:
            z = layer(z)
        return torch.tanh(functional.dropout(z, 0.5, self.training))


def test_what_draws_in_evaluation_mode_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "noisy.onnx"
    with pytest.raises(
        ExportError, match=r"^layers\.1 draws random numbers .* gp.adapt\(network, noise="
    ) as caught:
        gp.export_onnx(path, gp.adapt(Noisy(True), 3))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    network = gp.adapt(Noisy(False), 3).train()
    gp.export_onnx(path, network)
    assert network.training and network.network.training
    assert float((from_file(path, network, 4, 1) - gp.sample(network, 4, 1)).abs().max()) <= 1e-5


REFUSED = {
    "values": (lambda x: x if float(x.sum()) > 0 else -x, "goes another way for other values.*torch.where"),
    "tuple": (lambda x: (x, x), r"gp.adapt\(network, output="),
    "number": (lambda x: x * len(x), r"one number of images alone.*x.shape\[0\]"),
    "no operation": (lambda x: torch.linalg.eigvals(x[:, :, None] @ x[:, None]).real, "linalg_eig"),
    "fails": (lambda x: x.view(2, 3), r"one number of images|could not be run on latents"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_reasons_are_one_sentence(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    function, message = REFUSED[name]
    with pytest.raises(ExportError, match=message) as caught:
        gp.export_onnx(tmp_path / "g.onnx", Shaped((3,), nn.Linear(3, 3), Do(function)))
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 450 and not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- one class


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("one_hot", [False, True])
def test_a_twin_draws_one_class(one_hot: bool, joined: bool, tmp_path: Path) -> None:
    network = labelled(one_hot, joined)
    mask = gp.prune(network, 0.5)
    z = gp.sample_latents(20, 6, seed=2)
    for label in range(3):
        expected = gp.sample(network, latents=z, labels=label)
        torch.testing.assert_close(gp.sparse_twin(network, labels=label)(z), expected, rtol=0, atol=1e-5)
    path = tmp_path / "two.gps"
    gp.inference.save_sparse(path, network, labels=2)
    torch.testing.assert_close(
        gp.sparse_twin(gp.inference.load_sparse(path).program)(z), expected, rtol=0, atol=1e-5
    )
    dense = labelled(one_hot, joined)
    torch.testing.assert_close(
        gp.sparse_twin(dense, mask, labels=2)(z), expected, rtol=0, atol=1e-5
    )  # the same seed made it
    names = [layer.name for layer in trace_program(network, labels=1).layers]
    assert names == ["the network", "first", "up", "the network"]


class Scaled(nn.Linear):
    """Takes a number besides."""

    def forward(self, x: Tensor, factor: float) -> Tensor:
        return super().forward(x) * factor


def test_wrong_labels_are_refused() -> None:
    network = labelled()
    for bad in (-1, 3, 1.5, True):
        with pytest.raises(ValueError, match=r"labels must be (in \[0, 3\)|an integer of at least 0)"):
            gp.sparse_twin(network, labels=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="labels must be None: the network takes none"):
        gp.sparse_twin(gp.adapt(Noisy(False), 3), labels=0)
    with pytest.raises(ValueError, match="labels must be None: the network takes none"):
        gp.sparse_twin(Shaped((3,), nn.Linear(3, 2)), labels=0)
    critic = gp.dcgan(width=4, device="cpu").discriminator
    with pytest.raises(ValueError, match="labels must be None: the network takes none"):
        gp.sparse_twin(gp.adapt(critic), labels=0)
    odd = gp.adapt(Scaled(2, 2), inputs=lambda n, seed: (torch.zeros(n, 2), 0.5))
    with pytest.raises(InferenceError, match="one row for each image, got float for 3 images"):
        gp.sparse_twin(odd)
    twin = gp.sparse_twin(network, labels=0)
    with pytest.raises(ValueError, match="labels must be None for a program"):
        gp.sparse_twin(twin.program, labels=0)
    with pytest.raises(ValueError, match="labels must be None for a program"):
        gp.inference.save_sparse("never.gps", twin.program, labels=0)
    with pytest.raises(InferenceError, match=r"Labelled takes latents, labels, .* fix the class, labels=0"):
        gp.sparse_twin(network)
    with pytest.raises(InferenceError, match=r"Labelled takes latents, noise_0, and .* wrap it"):
        gp.sparse_twin(labelled(noises=1), labels=0)


def test_clamped_images_have_a_remedy() -> None:
    network = gp.adapt(nn.Linear(3, 4), 3, clamp=True)
    with pytest.raises(InferenceError, match="clamp=True"):
        gp.sparse_twin(network)


# ---------------------------------------------------------------- the command

SOURCE = """
import torch
import ganprune as gp
from torch import nn

class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Embedding(3, 6), nn.Linear(6, 64)

    def forward(self, z, label):
        return torch.sigmoid(self.layer(z * self.embed(label))).view(-1, 1, 8, 8)

def generator():
    return gp.adapt(Generator(), 6, 3, image_range=(0, 1))
"""


def test_the_command_exports_an_adapted_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SOURCE)
    named = ["export", "--generator", "mine.py:generator"]
    assert main([*named, "--onnx", "g.onnx", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["inputs"] == ["latents", "labels"] and row["sparsity"] == 0
    assert main([*named, "--onnx", "h.onnx"]) == 0
    assert re.search(r"inputs +latents, labels", capsys.readouterr().out)
    assert main([*named, "--sparse", "g.gps"]) == 1
    printed = capsys.readouterr().err
    assert "labels=0" in printed and printed.count("\n") <= 2
    assert not Path("g.gps").exists()
