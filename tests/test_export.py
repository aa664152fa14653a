"""Export: an ONNX file makes the network's images for any number of them, and no file is ever half written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from tools.channel_networks import Do, evaluated
from tools.inference_networks import Shaped, residual, thinned
from torch import nn

import ganprune as gp
from ganprune.__main__ import main
from ganprune.core.files import owned
from ganprune.inference import ExportError, OnnxFile


def run_onnx(path: Path, latents: torch.Tensor) -> torch.Tensor:
    """Return the images that ONNX Runtime makes."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["images"], {"latents": latents.numpy()})[0])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the shipped GAN, its generator pruned, as a checkpoint in a folder with a space and an é."""
    gan = gp.load_pretrained("dcgan-mnist", device="cpu")
    gp.prune(gan, sparsity=0.9)
    path = tmp_path_factory.mktemp("dépôt 1") / "pruned é.safetensors"
    gp.save(path, gan)
    return gan, path


@pytest.fixture(scope="module")
def exported(pruned: Any) -> tuple[OnnxFile, Path]:
    """Return what export says, and the file that it wrote."""
    gan, checkpoint = pruned
    path = checkpoint.with_name("one file.onnx")
    done = gp.export_onnx(path, gan.generator_ema, gan.masks["generator"], {"seed": 0})
    return done, path


def test_the_images_are_those_of_the_network_for_any_number_of_them(
    pruned: Any, exported: tuple[OnnxFile, Path]
) -> None:
    generator = pruned[0].generator_ema
    for count in (1, 2, 3, 5, 16, 64, 100, 256):
        z = gp.sample_latents(count, 64, seed=100 + count)
        images = run_onnx(exported[1], z)
        assert images.shape == (count, 1, 28, 28)
        assert float((images - evaluated(generator, z)).abs().max()) <= 1e-5


def test_a_file_is_one_file_that_says_what_it_is(exported: tuple[OnnxFile, Path]) -> None:
    done, path = exported
    model = onnx.load(str(path))
    remarks = {entry.key: entry.value for entry in model.metadata_props}
    assert remarks == {"sparsity": "0.900000", "ganprune": gp.__version__, "seed": "0"}
    assert done.file_bytes == path.stat().st_size < 1_100_000
    assert (done.opset, done.sparsity) == (20, pytest.approx(0.9))
    assert 0 <= done.difference <= 1e-5
    assert [entry.name for entry in (*model.graph.input, *model.graph.output)] == ["latents", "images"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert sorted(one.name for one in path.parent.iterdir()) == ["one file.onnx", "pruned é.safetensors"]
    assert b"site-packages" not in path.read_bytes()  # no paths of the machine that made it


def test_branches_and_norms_on_weights(tmp_path: Path) -> None:
    network = thinned(residual(), 0.0)
    gp.export_onnx(tmp_path / "r.onnx", network)
    z = torch.randn(7, 6)
    torch.testing.assert_close(run_onnx(tmp_path / "r.onnx", z), evaluated(network, z), rtol=0, atol=1e-5)
    assert network.last.parametrizations  # the network itself keeps its norms


class Noisy(nn.Module):
    """A generator that draws random numbers."""

    latent_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layer(z) + torch.randn_like(z[:, :1])


def test_a_file_that_computes_something_else_never_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "noisy.onnx"
    path.write_bytes(b"before")
    with pytest.raises(ExportError, match="the network draws random numbers in its forward pass"):
        gp.export_onnx(path, Noisy())
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_exported_is_said_in_one_sentence(
    pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, gan = tmp_path / "no.onnx", pruned[0]
    undecided = Shaped((3,), nn.Linear(3, 3), Do(lambda x: x if float(x.sum()) > 0 else -x))
    with pytest.raises(ExportError, match="Shaped cannot be written as ONNX") as caught:
        gp.export_onnx(path, undecided)
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="network must be a torch.nn.Module, got GAN"):
        gp.export_onnx(path, gan)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="attribute latent_dim"):
        gp.export_onnx(path, nn.Linear(2, 2))
    dense = gp.load_pretrained("dcgan-mnist", device="cpu").generator
    with pytest.raises(gp.masks.MaskError, match="non-zero weights under its mask"):
        gp.export_onnx(path, dense, gan.masks["generator"])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"onnxscript, which is not here: pip install 'ganprune\[export\]'"):
        gp.export_onnx(path, dense)
    assert not path.exists()


# ---------------------------------------------------------------- the command


def test_the_commands_of_the_book_work(pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(gp.__file__).parents[1] / "book" / "using-this-course.md").read_text(encoding="utf-8")
    text = page[page.index("**Out of the course.**") :]
    commands = re.findall(r"^ganprune (export .*)$", text, re.MULTILINE)
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    shutil.copy(pruned[1], tmp_path / "pruned.safetensors")
    monkeypatch.chdir(tmp_path)
    assert [main(command.split()) for command in commands] == [0, 0]
    names: dict[str, Any] = {}
    exec(code, names)
    expected = evaluated(pruned[0].generator_ema, gp.sample_latents(64, 64))
    assert float((names["images"] - expected).abs().max()) <= 1e-5


def test_the_command_writes_onnx(pruned: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gan, checkpoint = pruned
    out = tmp_path / "with a space" / "é.onnx"
    assert main(["export", str(checkpoint), "--onnx", str(out), "--json"]) == 0
    printed = capfd.readouterr()
    row = json.loads(printed.out)
    assert (row["sparsity"], row["nonzero"]) == (pytest.approx(0.9), gan.masks["generator"].kept)
    assert row["file_bytes"] == out.stat().st_size and row["network"] == "generator_ema"
    assert f"saved {out}, {row['file_bytes']:,} bytes" in printed.err
    remarks = {entry.key: entry.value for entry in onnx.load(str(out)).metadata_props}
    assert remarks["checkpoint"] == "pruned é.safetensors"
    z = gp.sample_latents(3, 64)
    assert float((run_onnx(out, z) - evaluated(gan.generator_ema, z)).abs().max()) <= 1e-5


def test_the_command_writes_sparse_files(
    pruned: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gan, checkpoint = pruned
    out = tmp_path / "é 1.gps"
    assert main(["export", str(checkpoint), "--network", "generator", "--sparse", str(out)]) == 0
    table = capsys.readouterr().out
    assert f"file bytes  {out.stat().st_size:,}" in table and "sparsity    0.9" in table
    stored = gp.inference.load_sparse(out)
    assert stored.program.nonzeros == gan.masks["generator"].kept
    assert stored.metadata["sparsity"] == pytest.approx(0.9)
    z = gp.sample_latents(3, 64)
    assert float((stored.network(z) - evaluated(gan.generator, z)).abs().max()) <= 1e-5


@pytest.mark.parametrize("kind", ["onnx", "sparse"])
def test_the_command_looks_for_zeros_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[nn.Module] = []
    look = gp.Mask.nonzero
    monkeypatch.setattr(gp.Mask, "nonzero", lambda network: looks.append(network) or look(network))
    out = tmp_path / ("a.onnx" if kind == "onnx" else "a.gps")
    assert main(["export", f"--{kind}", str(out), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (len(looks), row["sparsity"], row["nonzero"]) == (1, 0.0, 238_080)


@pytest.mark.parametrize("name", ["layers.deconv2.weight", "layers.norm1.running_var"])
def test_a_weight_that_is_nan_is_named_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    network = gp.dcgan(width=4, device="cpu").generator
    with torch.no_grad():
        network.state_dict()[name].view(-1)[0] = float("nan")
    with pytest.raises(
        gp.inference.ExportError, match=f"NaN or infinite, and so is its .* {name}; load a network"
    ):
        gp.export_onnx(tmp_path / "a.onnx", network)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_do_not_share_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.onnx", "a.gps"):
        out, kind = tmp_path / name, "--onnx" if name.endswith("onnx") else "--sparse"
        with owned(out):
            assert main(["export", kind, str(out)]) == 1
        assert "another run" in capsys.readouterr().err
        assert not out.exists()


def test_two_processes_write_whole_files(tmp_path: Path) -> None:
    out = tmp_path / "one.gps"
    command = [sys.executable, "-m", "ganprune", "export", "--sparse", str(out), "--json"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    codes = sorted(run.wait() for run in runs)
    for run in runs:
        run.communicate()
    assert codes in ([0, 0], [0, 1])
    assert gp.inference.load_sparse(out).program.nonzeros == 238_080
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("export", "one of the arguments --onnx --sparse is required"),
        ("export --onnx a.onnx --sparse a.gps", "not allowed with argument"),
        ("export --onnx a.pt", "argument --onnx: must end in .onnx, got 'a.pt'"),
        ("export --sparse a.onnx", "argument --sparse: must end in .gps, got 'a.onnx'"),
        ("export --onnx folder.onnx", "argument --onnx: must be a file, got the folder 'folder.onnx'"),
        ("export --sparse file/a.gps", "argument --sparse: cannot write 'file/a.gps'"),
        ("export gan.safetensors --network critic --onnx a.onnx", "argument --network: invalid choice"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    assert main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder.onnx"]


def test_a_checkpoint_that_is_not_there_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.onnx"
    assert main(["export", str(tmp_path / "nothing"), "--onnx", str(out)]) == 1
    assert "checkpoint not found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
