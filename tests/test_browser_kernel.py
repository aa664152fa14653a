"""The browser page's kernel and scripts: images equal PyTorch's, memory is bounded, damaged files are refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import in_your_browser
import kernel
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import BROWSER
from PIL import Image
from playwright.sync_api import Page
from scipy import stats
from tools.bare_page import bare_page, call, packed, unpacked
from tools.sparse_files import sealed, unsealed
from torch import nn

import ganprune as gp
from ganprune.experiments.page_files import SPARSITIES, dense_onnx_path, page_path
from ganprune.inference.sparse_file import load_sparse, save_sparse

DRAW = """
const file = m.readSparseFile(m.bytes(a.file));
const network = new m.Network(new m.Kernel(m.kernel), file);
return m.text(network.draw(new Float32Array(m.bytes(a.latents)), a.count));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with bare_page(tmp_path_factory.mktemp("served"), BROWSER) as bare:
        yield bare


def drawn(page: Page, path: Path, latents: torch.Tensor) -> np.ndarray:
    """The images that the browser makes of latents, in one row of numbers."""
    text = call(
        page, DRAW, file=packed(path.read_bytes()), latents=packed(latents.numpy()), count=len(latents)
    )
    return unpacked(text)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_images_equal_those_of_pytorch(page: Page, sparsity: float) -> None:
    latents = gp.sample_latents(64, 64, device="cpu")
    with torch.inference_mode():
        expected = load_sparse(page_path(sparsity)).network(latents)
    assert np.abs(drawn(page, page_path(sparsity), latents) - expected.numpy().reshape(-1)).max() < 1e-4


@pytest.mark.parametrize("count", [1, 31, 32, 33])
def test_any_number_of_images_is_drawn(page: Page, count: int) -> None:
    latents = gp.sample_latents(64, 64, device="cpu")
    whole = drawn(page, page_path(0.9), latents)
    assert np.array_equal(drawn(page, page_path(0.9), latents[:count]), whole[: count * 784])


def test_the_shipped_files_say_what_they_are() -> None:
    for sparsity in SPARSITIES:
        file = load_sparse(page_path(sparsity))
        assert file.metadata["sparsity"] == sparsity
        assert file.program.sparsity == pytest.approx(sparsity, abs=1e-3)
        assert file.metadata["split"] == "test" and file.metadata["samples"] == 10_000
        assert file.metadata["digit_fid"] > file.metadata["digit_fid_floor"] > 0
        assert 0 < file.metadata["precision"] <= 1 and 0 < file.metadata["recall"] <= 1
    assert len({load_sparse(page_path(sparsity)).metadata["steps"] for sparsity in SPARSITIES}) == 1


def test_the_dense_onnx_file_is_the_dense_network() -> None:
    session = onnxruntime.InferenceSession(dense_onnx_path(), providers=["CPUExecutionProvider"])
    latents = gp.sample_latents(5, 64, device="cpu")
    (found,) = session.run(None, {session.get_inputs()[0].name: latents.numpy()})
    with torch.inference_mode():
        expected = load_sparse(page_path(0.0)).network(latents).numpy()
    assert np.abs(found - expected).max() < 1e-4


class Reshape(nn.Module):
    """Features as images."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, *self.shape)


NETWORKS = {
    "fully connected": (
        nn.Sequential(nn.Linear(6, 10), nn.LeakyReLU(0.2), nn.Linear(10, 12), nn.Sigmoid(), Reshape(1, 3, 4)),
        (6,),
    ),
    "upsampling": (
        nn.Sequential(
            *(nn.Linear(5, 24), nn.ReLU(), Reshape(4, 2, 3), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Sigmoid()),
            *(nn.Upsample(scale_factor=3), nn.Conv2d(3, 2, (5, 2), padding=(1, 0)), nn.Tanh()),
        ),
        (5,),
    ),
    "odd sizes": (
        nn.Sequential(
            nn.ConvTranspose2d(7, 5, (3, 2)),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(5, 4, (4, 3), stride=(3, 2), padding=(1, 0), output_padding=(2, 1)),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 3, 3, stride=2, dilation=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(3, 2, 3, stride=2, dilation=(2, 1), padding=(2, 3)),
            nn.Tanh(),
        ),
        (7, 1, 1),
    ),
    "images to numbers": (
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(60, 9), Reshape(1, 3, 3)
        ),
        (2, 5, 4),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sparsity", [0.0, 0.7, 1.0])
def test_other_layers_are_drawn_as_well(page: Page, tmp_path: Path, name: str, sparsity: float) -> None:
    torch.manual_seed(0)
    network, shape = NETWORKS[name]
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter)
        if parameter.dim() > 1:
            parameter.data *= torch.rand_like(parameter) >= sparsity
    network.latent_shape = shape
    save_sparse(tmp_path / "network.gps", network.eval())
    latents = torch.randn(37, *shape)
    with torch.inference_mode():
        expected = network(latents).numpy().reshape(-1)
    assert np.abs(drawn(page, tmp_path / "network.gps", latents) - expected).max() < 1e-4


def test_latents_are_those_of_python_and_standard_normal(page: Page) -> None:
    for seed in (0, 1, 2**32 - 1):
        found = unpacked(call(page, "return m.text(m.normals(a.seed, 40_000))", seed=seed))
        assert np.abs(found - in_your_browser.normals(seed, 40_000)).max() < 1e-6
        assert stats.kstest(found, "norm").pvalue > 1e-3
        assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    first, second = in_your_browser.normals(0, 4_096), in_your_browser.normals(1, 4_096)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


def test_the_hyperbolic_tangent_is_one(page: Page) -> None:
    body = """
    const kernel = new m.Kernel(m.kernel), numbers = new Float32Array(m.bytes(a.numbers));
    const begin = kernel.take(4 * numbers.length), place = kernel.floats(begin, 4 * numbers.length);
    place.set(numbers);
    kernel.exports.tanh(begin, begin + 4 * numbers.length);
    return m.text(place.slice());
    """
    numbers = np.concatenate([np.linspace(-20, 20, 40_000), np.linspace(-1e-3, 1e-3, 4_000)]).astype(
        np.float32
    )
    found = unpacked(call(page, body, numbers=packed(numbers)))
    assert np.abs(found - np.tanh(numbers.astype(float))).max() < 4e-7
    assert np.abs(found).max() <= 1


def test_memory_does_not_grow_with_drawings(page: Page) -> None:
    body = """
    const kernel = new m.Kernel(m.kernel), files = a.files.map((file) => m.readSparseFile(m.bytes(file)));
    const sizes = [];
    for (let turn = 0; turn < 28; turn += 1) {
      new m.Network(kernel, files[turn % files.length]).draw(m.normals(turn, 64 * 64), 64);
      sizes.push(kernel.memory.buffer.byteLength);
    }
    return sizes;
    """
    files = [packed(page_path(sparsity).read_bytes()) for sparsity in SPARSITIES]
    sizes = call(page, body, files=files)
    assert set(sizes[len(files) :]) == {max(sizes)}
    assert max(sizes) < 8e6


def test_the_recorded_pictures_are_what_the_page_draws(page: Page) -> None:
    folder = in_your_browser.prepare() / "in-your-browser"
    for sparsity in SPARSITIES:
        latents = torch.from_numpy(in_your_browser.normals(0, 64 * 64)).reshape(64, 64)
        images = drawn(page, page_path(sparsity), latents).reshape(64, 28, 28)
        for digits in in_your_browser.DIGITS:
            recorded = np.asarray(
                Image.open(folder / f"{in_your_browser.name_of(sparsity)}-{digits}.png"), int
            )
            live = np.asarray(in_your_browser.sheet(images[:digits]), int)
            assert recorded.shape == live.shape and np.abs(recorded - live).max() <= 1
            assert recorded.std() > 20


# ---------------------------------------------------------------- files that are refused


def rewritten(path: Path, change: dict, layer: dict) -> bytes:
    """A file with other values in its header, and in the header of its second layer; its checksum fits them."""
    data = unsealed(path.read_bytes())
    (length,) = struct.unpack("<I", data[12:16])
    header = json.loads(data[16 : 16 + length]) | change
    if layer:
        header["layers"][1] |= layer
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    return sealed(data[:12] + struct.pack("<I", len(text)) + text + data[16 + length :])


def spoilt() -> dict[str, tuple[bytes, str]]:
    """Name → a damaged file and what is said about it."""
    path = page_path(0.98)
    whole = path.read_bytes()
    data = unsealed(whole)
    entry = json.loads(data[16 : 16 + struct.unpack("<I", data[12:16])[0]])["layers"][1]
    at = len(data) - 8
    positions, values = entry["positions"], entry["values"]
    return {
        "empty": (b"", "too short"),
        "other": (b"\x89PNG" + data[4:], "does not begin with GANPRUNE"),
        "version": (sealed(data[:8] + struct.pack("<I", 1) + data[12:]), "version 1"),
        "bit of a weight": (whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:], "checksum is another"),
        "bit of the checksum": (whole[:-1] + bytes([whole[-1] ^ 128]), "checksum is another"),
        "cut": (whole[:-400], "checksum is another"),
        "header": (sealed(data[:12] + struct.pack("<I", 2**31) + data[16:]), "header is longer"),
        "json": (sealed(data[:16] + b"\xff" + data[17:]), "no JSON"),
        "no layers": (rewritten(path, {"layers": []}, {}), "no layers"),
        "not finite": (sealed(data[:at] + struct.pack("<f", float("nan")) + data[at + 4 :]), "not finite"),
        "short": (sealed(data[:-400]), "points outside"),
        "type": (rewritten(path, {}, {"type": "attention"}), "unknown type"),
        "activation": (rewritten(path, {}, {"activation": "softmax"}), "unknown activation"),
        "groups": (rewritten(path, {}, {"groups": 2}), "contradict"),
        "size": (rewritten(path, {}, {"output": [64, 8, 8]}), "contradict"),
        "huge": (rewritten(path, {"image": [1, 2**20, 2**20]}, {}), "shapes of latent and image"),
        "offset": (rewritten(path, {}, {"values": {**values, "offset": -4}}), "points outside"),
        "count": (rewritten(path, {}, {"nonzeros": entry["nonzeros"] - 1}), "one value for each"),
        "fewer": (
            rewritten(path, {}, {"positions": {**positions, "bytes": positions["bytes"] - 1}}),
            "too early",
        ),
        "more": (
            rewritten(path, {}, {"positions": {**positions, "bytes": positions["bytes"] + 1}}),
            "more positions",
        ),
        "beyond": (
            rewritten(path, {}, {"positions": {**positions, "offset": values["offset"]}}),
            "positions|position",
        ),
        "image": (rewritten(path, {"image": [1, 14, 14]}, {}), "does not give the image"),
    }


@pytest.mark.parametrize("name", spoilt())
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(page: Page, name: str) -> None:
    data, expected = spoilt()[name]
    body = "try { m.readSparseFile(m.bytes(a.file)); return '' } catch (error) { return error.message }"
    said = call(page, body, file=packed(data))
    assert said.startswith("This is no sparse file that can be drawn with: ") and said.endswith(".")
    assert any(words in said for words in expected.split("|")), said
    assert said.count(". ") == 0


# ---------------------------------------------------------------- the kernel itself


def test_the_kernel_is_small_and_says_where_a_mistake_is(tmp_path: Path) -> None:
    assert kernel.assemble(tmp_path / "k.wasm").stat().st_size < 1_000
    (tmp_path / "bad.wat").write_text("(module\n (func (result i32) (i32.const oops)))")
    with pytest.raises(kernel.AssemblyError, match=r"bad\.wat:2"):
        kernel.assemble(tmp_path / "bad.wasm", tmp_path / "bad.wat")
    assert not (tmp_path / "bad.wasm").exists()
