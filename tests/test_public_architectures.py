"""Twelve public architectures: sampled, scored, pruned, kept, shrunk or refused; the table is that of the book."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import public_architectures
import pytest
import torch
from public_architectures import NAMES, Critic, registered
from torch import Tensor, nn

import ganprune as gp
from ganprune.channels.analysis import Analysis, analyse
from ganprune.channels.cutting import zero_channels
from ganprune.channels.parts import drop_picker
from ganprune.channels.surgery import finish_removal
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


def row_of(name: str) -> str:
    """Return an architecture's row of the table: which groups of channels can go, and why the others stay."""
    groups = [group for group in analysed(name).groups if group.reason != OUTPUT and group.channels > 1]
    free = [group for group in groups if group.prunable]
    why = {words for group in groups for key, words in REASONS.items() if key in group.reason}
    unknown = [g.reason for g in groups if g.reason and not any(key in g.reason for key in REASONS)]
    assert not unknown
    channels = f"{len(free)} of {len(groups)} groups" + (f"; {', '.join(sorted(why))}" if why else "")
    return f"| {name} | yes | {', '.join(SCORES)} | 80%, kept | {channels} |"


def test_the_table_is_that_of_the_book() -> None:
    """What the tests above have shown of each, and the channels."""
    rows = [row_of(name) for name in NAMES]
    assert sum(len(removed(analysed(name))) > 0 for name in NAMES) >= 9
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"^\| Architecture \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    assert found is not None
    assert found[1].splitlines() == rows
    assert public_architectures.NAMES.keys() == {line.split("|")[1].strip() for line in found[1].splitlines()}
    assert Critic([2, 2])(torch.zeros(3, 2, 2)).shape == (3,)
