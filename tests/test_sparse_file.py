"""Sparse files: what is written comes back, the format is the one that is described, and damage is refused."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.channel_networks import close, course, evaluated
from tools.inference_networks import Shaped, convolutions, residual, thinned
from tools.sparse_files import sealed, unsealed
from torch import nn

import ganprune as gp
from ganprune.core import CheckpointError
from ganprune.inference import InferenceError, trace_program
from ganprune.inference.varints import decode_varints, encode_varints


def read_by_hand(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return header and weights, (out, in, …), read as slowly and plainly as the description of the format says."""
    data = path.read_bytes()
    version, length = struct.unpack("<II", data[8:16])
    assert (data[:8], version, length % 4) == (b"GANPRUNE", 2, 0)
    assert struct.unpack("<I", data[-4:]) == (zlib.crc32(data[:-4]),)
    header, payload, weights = json.loads(data[16 : 16 + length]), data[16 + length : -4], []
    for layer in header["layers"]:
        shape = list(layer["weight"])
        if layer["type"] == "conv_transpose2d":
            shape[:2] = shape[1::-1]
        flat, at, position = np.zeros(int(np.prod(shape)), np.float32), layer["positions"]["offset"], -1
        for number in range(layer["nonzeros"]):
            step, shift = 0, 0
            while True:
                byte = payload[at]
                at, step, shift = at + 1, step | (byte & 127) << shift, shift + 7
                if byte < 128:
                    break
            position += step
            flat[position] = struct.unpack_from("<f", payload, layer["values"]["offset"] + 4 * number)[0]
        assert at == layer["positions"]["offset"] + layer["positions"]["bytes"]
        weights.append(flat.reshape(shape))
    return header, weights


@given(numbers=st.lists(st.integers(0, 2**35 - 1), max_size=50))
def test_varints_come_back(numbers: list[int]) -> None:
    data = encode_varints(np.array(numbers, np.int64))
    assert decode_varints(data).tolist() == numbers
    assert len(data) == sum(max(1, -(-number.bit_length() // 7)) for number in numbers)


def test_varints_of_the_standard() -> None:
    assert encode_varints(np.array([1, 127, 128, 624485])) == bytes([1, 127, 128, 1, 0xE5, 0x8E, 0x26])
    for bad, message in ((b"\x80", "cut off"), (b"\x01\xff", "cut off"), (b"\xff" * 5 + b"\x01", "longer")):
        with pytest.raises(ValueError, match=message):
            decode_varints(bad)


@pytest.mark.parametrize("name", ["generator", "discriminator", "mlp generator"])
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_the_format_is_the_one_that_is_described(tmp_path: Path, name: str, sparsity: float) -> None:
    network = thinned(course(name, norm="none"), sparsity)
    path = tmp_path / "with a space" / "öne.gps"
    assert gp.inference.save_sparse(path, network, {"seed": 3}) == path.stat().st_size
    header, weights = read_by_hand(path)
    program = trace_program(network)
    assert header["metadata"] == {"seed": 3}
    assert (tuple(header["latent"]), tuple(header["image"])) == (program.latent, program.image)
    for entry, weight, layer in zip(header["layers"], weights, program.layers, strict=True):
        expected = layer.weight.numpy()
        assert np.array_equal(weight.swapaxes(0, 1) if layer.kind == "conv_transpose2d" else weight, expected)
        assert entry["nonzeros"] == np.count_nonzero(expected)
        assert (entry["name"], tuple(entry["input"]), entry["groups"]) == (layer.name, layer.input, 1)
        assert ("slope" in entry) == (entry["activation"] == "leaky_relu")
    if name == "generator":
        first = header["layers"][0]
        assert (first["type"], first["input"], first["output"]) == ("conv_transpose2d", [6, 1, 1], [16, 4, 4])


@settings(max_examples=40)
@given(network=convolutions(groups=False))
def test_what_is_written_comes_back(tmp_path_factory: pytest.TempPathFactory, network: Any) -> None:
    path = tmp_path_factory.mktemp("files") / "network.gps"
    gp.inference.save_sparse(path, network)
    program, expected = gp.inference.load_sparse(path).program, trace_program(network)
    assert (program.latent, program.image) == (expected.latent, expected.image)
    for one, other in zip(program.layers, expected.layers, strict=True):
        for name in one.__dataclass_fields__:
            first, second = getattr(one, name), getattr(other, name)
            same = torch.equal(first, second) if name in ("weight", "bias") else first == second
            assert same or name == "slope", name
    z = torch.randn(3, *program.latent)
    close(gp.inference.load_sparse(path).network(z), evaluated(network, z))


def test_a_pruned_generator_takes_the_bytes_of_its_weights(tmp_path: Path) -> None:
    generator = gp.load_pretrained("dcgan-mnist", device="cpu").generator_ema
    sizes = []
    for number, sparsity in enumerate((0.5, 0.9)):
        pruned = copy.deepcopy(generator)
        mask = gp.prune(pruned, sparsity=sparsity)
        size = gp.inference.save_sparse(tmp_path / f"{number}.gps", pruned)
        assert (
            4 * mask.kept < size < 5.2 * mask.kept + 5_000
        )  # a value takes four bytes, its position about one
        sizes.append(size)
        z = gp.sample_latents(4, 64)
        close(gp.inference.load_sparse(tmp_path / f"{number}.gps").network(z), evaluated(pruned, z))
    assert sizes[1] < sizes[0] / 4


def test_what_a_file_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.gps"
    path.write_bytes(b"before")
    grouped = Shaped((4, 3, 3), nn.Conv2d(4, 4, 1, groups=2))
    for network, message in (
        (residual(), "up.skip reads more|up.norm1|without branches"),
        (grouped, "2 groups"),
    ):
        with pytest.raises(InferenceError, match=message):
            gp.inference.save_sparse(path, network)
    for bad in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises(ValueError, match="metadata must be values that JSON can hold"):
            gp.inference.save_sparse(path, course("generator"), bad)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def rewrite(path: Path, change: Any) -> None:
    """Change the header of a file, and its checksum with it."""
    data = unsealed(path.read_bytes())
    (length,) = struct.unpack("<I", data[12:16])
    header = json.loads(data[16 : 16 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    path.write_bytes(sealed(data[:12] + struct.pack("<I", len(text)) + text + data[16 + length :]))


def set_to(*path: Any) -> Any:
    """Return a change that sets an entry of the header, named by its keys, to the last argument."""

    def change(header: Any) -> None:
        *keys, last, value = path
        for key in keys:
            header = header[key]
        header[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: ["list"], "must be an object"),
        (set_to("latent", "64"), "latent must be"),
        (set_to("image", [1, 28, 29]), "its image is"),
        (set_to("image", [0]), "image must be a list of sizes"),
        (set_to("metadata", None), "metadata must be an object"),
        (set_to("layers", []), "at least one layer"),
        (set_to("layers", 1, "norm"), "layer 1 must be an object with a name"),
        (set_to("layers", 0, "type", ["linear"]), "type of layers.deconv1"),
        (set_to("layers", 0, "type", "conv3d"), "one of linear, conv2d"),
        (set_to("layers", 0, "activation", "exec"), "activation of layers.deconv1"),
        (set_to("layers", 0, "activation", "leaky_relu"), "slope of layers.deconv1"),
        (set_to("layers", 0, "stride", [0, 1]), "stride of layers.deconv1"),
        (set_to("layers", 0, "padding", [1]), "padding of layers.deconv1"),
        (set_to("layers", 0, "padding", [9, 9]), "should make"),
        (set_to("layers", 0, "dilation", [True, True]), "dilation of layers.deconv1"),
        (set_to("layers", 0, "groups", 2), "groups of layers.deconv1"),
        (set_to("layers", 0, "upsample", 0), "upsample of layers.deconv1"),
        (set_to("layers", 0, "upsample", 2**39), "upsample of layers.deconv1"),
        (set_to("layers", 1, "input", [16, 4, 5]), "reads"),
        (set_to("layers", 1, "input", [8, 8, 4]), "weight of layers.deconv2 reads 16 channels"),
        (set_to("layers", 1, "output", [8, 7, 8]), "but gets"),
        (set_to("layers", 0, "weight", [6, 16, 2**20, 2**20]), "more than"),
        (set_to("layers", 0, "weight", [6, 16, 4]), "must be 4 sizes"),
        (set_to("layers", 0, "nonzeros", -1), "nonzeros of layers.deconv1"),
        (set_to("layers", 0, "nonzeros", 3), "values of layers.deconv1"),
        (set_to("layers", 0, "positions", "offset", 2), "a multiple of 4"),
        (set_to("layers", 0, "values", "offset", 2**30), "inside of the"),
        (set_to("layers", 0, "bias", {}), "offset and count"),
        (set_to("layers", 0, "bias", "count", 5), "bias of layers.deconv1 must be 16"),
    ],
)
def test_a_header_that_does_not_agree_with_itself_is_refused(
    tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "file.gps"
    gp.inference.save_sparse(path, course("generator"))
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        gp.inference.load_sparse(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_payloads_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.gps"
    gp.inference.save_sparse(path, course("generator"))
    data = unsealed(path.read_bytes())
    (length,) = struct.unpack("<I", data[12:16])
    first = json.loads(data[16 : 16 + length])["layers"][0]
    begin = 16 + length

    def damaged(offset: int, new: bytes) -> bytes:
        return data[: begin + offset] + new + data[begin + offset + len(new) :]

    infinite = struct.pack("<f", float("inf"))
    for whole, message in (
        (damaged(first["positions"]["offset"], b"\x7f" * 40), "must ascend and stay inside"),
        (damaged(first["positions"]["offset"], b"\0"), "must ascend"),
        (damaged(first["positions"]["offset"], b"\x80"), "positions for"),
        (damaged(first["values"]["offset"], infinite), "must be finite"),
        (damaged(first["bias"]["offset"], infinite), "must be finite"),
        (data + b"\0\0\0\0", "payload should have"),
        (data[:-4], "inside of the"),
    ):
        path.write_bytes(sealed(whole))
        with pytest.raises(CheckpointError, match=message):
            gp.inference.load_sparse(path)


@settings(max_examples=100)
@given(at=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_wherever_it_is(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("files") / "file.gps"
    gp.inference.save_sparse(path, Shaped((2,), nn.Linear(2, 2)))
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"checksum is another|begin with GANPRUNE|it has version"):
        gp.inference.load_sparse(path)


@settings(max_examples=60)
@given(cut=st.integers(1, 399))
def test_a_file_that_was_cut_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("files") / "file.gps"
    gp.inference.save_sparse(path, Shaped((2,), nn.Linear(2, 2)))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match="checksum is another|does not begin with GANPRUNE"):
        gp.inference.load_sparse(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin with GANPRUNE"),
        (b"GANPRUNE", "does not begin"),
        (b"safetens" + bytes(8), "does not begin with GANPRUNE"),
        (b"GANPRUNE" + struct.pack("<II", 1, 0), "version 1, .* write it again from its checkpoint"),
        (b"GANPRUNE" + struct.pack("<II", 2, 0) + bytes(4), "checksum is another"),
        (sealed(b"GANPRUNE" + struct.pack("<II", 2, 3) + b"{} "), "multiple of 4"),
        (sealed(b"GANPRUNE" + struct.pack("<II", 2, 2**31)), "header should have"),
        (sealed(b"GANPRUNE" + struct.pack("<II", 2, 4) + b"\xff\xff\xff\xff"), "no whole sparse file"),
        (sealed(b"GANPRUNE" + struct.pack("<II", 2, 40_000) + b"[" * 40_000), "no whole sparse file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "file.gps"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        gp.inference.load_sparse(path)
    with pytest.raises(CheckpointError, match="sparse file not found"):
        gp.inference.load_sparse(tmp_path / "nothing.gps")
