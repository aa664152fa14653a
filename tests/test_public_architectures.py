"""Twelve public architectures: sampled, scored, pruned, shrunk and exported, or refused; the table is the book's."""

from __future__ import annotations

import copy
import functools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import public_architectures
import pytest
import torch
from public_architectures import NAMES, Critic, registered
from tools.channel_networks import lively
from torch import Tensor, nn

import ganprune as gp
from ganprune.channels.analysis import Analysis, analyse
from ganprune.channels.cutting import zero_channels
from ganprune.channels.parts import drop_picker
from ganprune.channels.surgery import finish_removal
from ganprune.inference import ExportError, InferenceError
from ganprune.networks import CustomSpec, trust

PAGE = Path(__file__).resolve().parents[1] / "book" / "bring-your-own.md"
SCORES = ("magnitude", "taylor", "synflow")
OUTPUT = "these channels reach the network's output"
REASONS = {
    "layer of your own": "modulated convolutions are no one product",
    "norm over channels": "pixel norm",
    "those of attention": "attention",
    "hang on one channel": "feeds modulated convolutions",
    "those of last": "pixel shuffle",
}
"""What a reason says → what the table calls it."""
REFUSED = {
    "as many groups as there are images": "a weight for each image",
    "noise_0": "noise inputs",
    "permute": "attention",
    "split": "a latent in parts",
    "pow": "pixel norm",
    "reflection_pad": "reflection",
    "prelu": "PReLU",
    "3 dimensions": "three dimensions",
}
"""The same for exports and twins."""

pytestmark = pytest.mark.filterwarnings("ignore:.*belong to layers that are not pruned.*constant")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registered():
        yield


def build(name: str) -> nn.Module:
    """Return the generator in its adapter, with the spec by which it is saved."""
    path = f"public_architectures:{NAMES[name]}"
    with trust(path), torch.random.fork_rng():
        torch.manual_seed(0)
        return CustomSpec(path).build()


def judged(generator: nn.Module) -> gp.GAN:
    """Return a GAN of the generator and a critic for what it makes."""
    shape = list(gp.sample(generator, 2).shape[1:])
    path = "public_architectures:Critic"
    with trust(path), torch.random.fork_rng():
        torch.manual_seed(1)
        return gp.GAN(generator, CustomSpec(path, {"shape": shape}).build())


class Noise:
    """Real samples of any shape."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def batch(self, n: int, seed: int, step: int) -> Tensor:
        return torch.rand(n, *self.shape, generator=gp.seeded(seed)) * 2 - 1


@functools.cache
def analysed(name: str) -> Analysis:
    return analyse(build(name).eval(), None)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_sampled(name: str) -> None:
    network = build(name)
    samples = gp.sample(network, 6, seed=1)
    assert samples.isfinite().all()
    assert samples.abs().max() <= 1
    assert samples.flatten(1).std(0).max() > 1e-4  # samples differ
    assert torch.equal(samples, gp.sample(network, 6, seed=1))
    assert not torch.equal(samples, gp.sample(network, 6, seed=2))
    assert gp.complexity(network, batch_size=None).macs > 0


@pytest.mark.parametrize("name", NAMES)
def test_it_is_scored_pruned_and_kept(name: str) -> None:
    gan = judged(build(name))
    for score in SCORES:
        given: dict = {"loss_fn": gp.generator_loss(gan, 2, 4)} if score == "taylor" else {}
        given |= {"sparsity": 0.8, "rounds": 5} if score == "synflow" else {}
        scores = gp.score(gan.generator, score, **given)
        assert set(scores) == set(gp.prunable_weights(gan.generator.network))
        assert sum(int((value > 0).sum()) for value in scores.values()) > 0.15 * sum(
            v.numel() for v in scores.values()
        )
    mask = gp.prune(gan, 0.8, allocation="uniform")  # untrained weights of small layers would all go
    assert mask.sparsity == pytest.approx(0.8, abs=1e-3)
    before = {key: weight.detach().clone() for key, weight in gp.prunable_weights(gan.generator).items()}
    config = gp.TrainConfig(steps=2, batch_size=4, precision="float32", penalty=None)
    samples = Noise(gp.sample(gan.generator, 2).shape[1:])
    gp.train(gp.TrainState(gan, config), samples, show_progress=False)
    gan.masks.check()
    after = gp.prunable_weights(gan.generator)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    gp.check_mask(gan.generator.network, mask)
    gp.apply_mask(build(name).network, mask)  # it fits the bare network


def removed(analysis: Analysis) -> dict[str, list[int]]:
    """Return the first half of the channels of each group that can be pruned."""
    groups = (group for group in analysis.groups if group.prunable)
    return {group.name: list(range(group.channels // 2)) for group in groups if group.channels > 1}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_shrunk_and_computes_what_the_masked_network_does(name: str, tmp_path: Path) -> None:
    generator, analysis = build(name).eval(), analysed(name)
    masked = generator.with_network(drop_picker(copy.deepcopy(analysis.plain)))
    torch.testing.assert_close(gp.sample(masked, 4), gp.sample(generator, 4), rtol=1e-3, atol=1e-4)
    cut = analysis.cut_units(removed(analysis))
    zero_channels(masked.network, cut, consumers=True)
    small = finish_removal(analysis, cut)
    torch.testing.assert_close(gp.sample(small, 4), gp.sample(masked, 4), rtol=1e-3, atol=1e-4)
    counts = [sum(p.numel() for p in network.parameters()) for network in (small, generator)]
    assert counts[0] < 0.9 * counts[1]
    gan = judged(small)
    gp.save(tmp_path / "small.safetensors", gan)
    with trust(f"public_architectures:{NAMES[name]}", "public_architectures:Critic"):
        loaded = gp.load(tmp_path / "small.safetensors", "cpu")
    assert torch.equal(gp.sample(loaded.generator, 4), gp.sample(small, 4))


def test_norms_over_channels_are_shrunk_when_asked() -> None:
    exact, network = analysed("PGAN"), build("PGAN").eval()
    with pytest.warns(UserWarning, match=r"outputs differ from those of the masked network by \d+\.\d\d%"):
        small = gp.shrink_channels(network, 0.5, approximate=True)
    assert small.network.convs[0].out_channels == 4
    assert len(removed(exact)) < len(removed(analyse(network, None, approximate=True)))
    assert gp.sample(small, 3).shape == gp.sample(network, 3).shape


@functools.cache
def pruned(name: str) -> nn.Module:
    """Return the generator with half of its weights zero, and batch norms that have seen images."""
    network = lively(build(name).eval())
    gp.prune(network, 0.5, allocation="uniform")
    return network


@functools.cache
def exported(name: str) -> tuple[bytes, tuple[str, ...]] | str:
    """Return the ONNX file and the names of its inputs, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.onnx"
        try:
            done = gp.export_onnx(path, pruned(name))
            return path.read_bytes(), done.inputs
        except ExportError as error:
            return str(error)


def from_file(data: bytes, names: tuple[str, ...], drawn: tuple[Tensor, ...]) -> Tensor:
    """Return the images that ONNX Runtime makes."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    fed = {key: one.numpy() for key, one in zip(names, drawn, strict=True)}
    return torch.from_numpy(session.run(["images"], fed)[0])


def range_of(network: nn.Module, drawn: tuple[Tensor, ...]) -> float:
    """Return the range of what a generator makes before its images are cut: 2 of one that ends with tanh."""
    uncut = copy.copy(network)
    uncut.clamp = False
    images = uncut(*drawn)
    return max(2.0, float(images.max() - images.min()))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_its_onnx_file_makes_the_same_images(name: str) -> None:
    network, found = pruned(name), exported(name)
    if isinstance(found, str):
        assert re.search("groups as there are images.*; multiply .* instead of its weight", found)
        return
    for n in (1, 2, 3, 7, 64, 256):
        drawn = network.draw_inputs(n, seed=n)
        images, expected = from_file(*found, drawn), gp.sample(network, n, seed=n)
        assert images.shape == expected.shape
        assert float((images - expected).abs().max()) <= 1e-5 * range_of(network, drawn)


@pytest.mark.parametrize("name", ["ACGAN", "SAGAN", "PGAN", "SRGAN"])
@torch.no_grad()
def test_a_shrunk_one_is_exported_as_what_it_computes(name: str, tmp_path: Path) -> None:
    small = gp.shrink_channels(pruned(name), 0.5)
    done = gp.export_onnx(tmp_path / "g.onnx", small)
    assert len(done.path.read_bytes()) < len(exported(name)[0])
    for n in (1, 3, 64):
        drawn = small.draw_inputs(n, seed=n)
        images = from_file(done.path.read_bytes(), done.inputs, drawn)
        expected = gp.sample(small, n, seed=n)
        assert float((images - expected).abs().max()) <= 1e-5 * range_of(small, drawn)


@functools.cache
def twin_of(name: str) -> gp.inference.SparseTwin | str:
    """Return a sparse twin, of one class where there are labels, or why there is none."""
    network = pruned(name)
    try:
        return gp.sparse_twin(network, labels=3 if network.inputs.labels else None)
    except InferenceError as error:
        return str(error)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_its_sparse_twin_makes_the_same_images(name: str) -> None:
    network, twin = pruned(name), twin_of(name)
    if isinstance(twin, str):
        assert "gp.export_onnx" in twin and "\n" not in twin
        return
    drawn = network.draw_inputs(40, seed=5)
    labels = 3 if network.inputs.labels else None
    if labels is not None:
        drawn = network.with_labels(drawn, labels)
        with pytest.raises(InferenceError, match="takes latents, labels, .* fix the class"):
            gp.sparse_twin(network)
    assert float((twin(drawn[0]) - network(*drawn)).abs().max()) <= 1e-4
    assert len(twin.program.layers) >= len(gp.prunable_weights(network))


def row_of(name: str) -> str:
    """Return an architecture's row of the table: its channels that can go, its file and its twin, or why not."""
    groups = [group for group in analysed(name).groups if group.reason != OUTPUT and group.channels > 1]
    free = [group for group in groups if group.prunable]
    why = {words for group in groups for key, words in REASONS.items() if key in group.reason}
    unknown = [g.reason for g in groups if g.reason and not any(key in g.reason for key in REASONS)]
    assert not unknown
    channels = f"{len(free)} of {len(groups)} groups" + (f"; {', '.join(sorted(why))}" if why else "")
    file, twin = exported(name), twin_of(name)
    written = f"no: {short_reason(file)}" if isinstance(file, str) else ", ".join(file[1])
    sparse = "yes, of one class" if build(name).inputs.labels else "yes"
    sparse = f"no: {short_reason(twin)}" if isinstance(twin, str) else sparse
    return f"| {name} | {channels} | {written} | {sparse} |"


def short_reason(message: str) -> str:
    """Return the layer that an error names, and what the table calls the operation."""
    found = re.search(r"([\w.]+|the network) (?:has|computes|takes) (.+)", message)
    assert found is not None, message
    words = next(words for key, words in REFUSED.items() if key in found[2])
    return words if found[1] in ("the network", "StyleGAN2") else f"`{found[1]}`, {words}"


def test_the_table_is_that_of_the_book() -> None:
    """What the tests above have shown of each, and the channels."""
    rows = [row_of(name) for name in NAMES]
    assert sum(len(removed(analysed(name))) > 0 for name in NAMES) >= 9
    assert sum(not isinstance(exported(name), str) for name in NAMES) >= 8
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"^\| Architecture \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    assert found is not None
    assert found[1].splitlines() == rows
    assert f"scored by {', '.join(SCORES[:-1])} and {SCORES[-1]}, pruned to 80%" in text
    assert public_architectures.NAMES.keys() == {line.split("|")[1].strip() for line in found[1].splitlines()}
    assert Critic([2, 2])(torch.zeros(3, 2, 2)).shape == (3,)
