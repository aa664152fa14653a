"""The GAN owns its masks: whatever is called in whatever order, networks and masks agree or an error says so."""

from __future__ import annotations

import copy
import gc
import tempfile
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tools.small_gans import Ring, config, equal, hooks_on, small_gan, weights

import ganprune as gp

NETWORKS = ("generator", "discriminator")


def zeros_of(network: torch.nn.Module) -> float:
    """Return the share of zeros among the prunable weights."""
    parts = [weight.detach().flatten() == 0 for weight in gp.prunable_weights(network).values()]
    return float(torch.cat(parts).float().mean())


class Sequences(RuleBasedStateMachine):
    """Public calls in any order. What the GAN says about its masks is compared with what its weights are."""

    @initialize()
    def begin(self) -> None:
        self.gan, self.state = small_gan((6, 5)), None
        self.expected: dict[str, gp.Mask] = {}
        self.dense_is_said: set[str] = set()
        self.folder = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def owned(self, network: str) -> bool:
        """Return whether somebody answers for the zeros of a network."""
        said = network in self.expected or network in self.dense_is_said
        return said or zeros_of(self.gan.networks()[network]) == 0

    @rule(which=st.sampled_from([*NETWORKS, "both"]), sparsity=st.sampled_from([0.3, 0.6, 0.8]))
    def prune(self, which: str, sparsity: float) -> None:
        found = gp.prune(self.gan, sparsity, which=which)
        self.expected |= found if which == "both" else {which: found}
        self.dense_is_said -= set(self.expected)

    @rule(network=st.sampled_from(NETWORKS))
    def prune_behind_the_back_of_the_gan(self, network: str) -> None:
        """Zeros without a mask, or more of them than the mask has."""
        gp.prune(self.gan.networks()[network], 0.7)

    @rule(network=st.sampled_from(NETWORKS))
    def revive_weights(self, network: str) -> None:
        """As load_state_dict of a dense checkpoint does."""
        with torch.no_grad():
            for weight in gp.prunable_weights(self.gan.networks()[network]).values():
                weight[weight == 0] = 0.01

    @rule()
    def clear(self) -> None:
        self.gan.masks.clear()
        self.expected, self.dense_is_said = {}, set(NETWORKS)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        network = data.draw(st.sampled_from(sorted(self.expected)))
        del self.gan.masks[network]
        del self.expected[network]
        self.dense_is_said.add(network)

    @rule()
    def copy(self) -> None:
        self.gan, self.state = copy.deepcopy(self.gan), None

    def disagreement(self) -> bool:
        """Return whether some network and its mask, or its zeros and nobody, disagree."""
        for network in NETWORKS:
            one = self.gan.networks()[network]
            if network not in self.expected:
                if not self.owned(network):
                    return True
                continue
            copies = [one, self.gan.generator_ema] if network == "generator" else [one]
            for each in copies:
                for key, weight in gp.prunable_weights(each).items():
                    if bool((weight.detach()[~self.expected[network][key]] != 0).any()):
                        return True
        return False

    def attempt(self, action) -> bool:
        """Call, and demand an error exactly where something disagrees."""
        if self.disagreement():
            with pytest.raises(gp.masks.MaskError):
                action()
            return False
        action()
        return True

    @rule(resumed=st.booleans(), failing=st.booleans())
    def train(self, resumed: bool, failing: bool) -> None:
        if not resumed or self.state is None or self.state.gan is not self.gan:
            self.state = gp.TrainState(self.gan, config(steps=200))

        def interrupt(state: gp.TrainState) -> None:
            if failing:
                raise KeyboardInterrupt

        def run() -> None:
            try:
                gp.train(self.state, Ring(), [interrupt], until=self.state.step + 2)
            except KeyboardInterrupt:
                assert failing

        before = {network: zeros_of(self.gan.networks()[network]) for network in NETWORKS}
        if self.attempt(run):
            for network, mask in self.expected.items():
                gp.check_mask(self.gan.networks()[network], mask)
            for network in set(NETWORKS) - set(self.expected):
                after = zeros_of(self.gan.networks()[network])
                assert after < before[network] or after == 0, "a dense network trains its zeros too"

    @rule()
    def train_by_hand(self) -> None:
        if "generator" not in self.expected or self.disagreement():
            return
        generator = self.gan.generator
        optimizer = torch.optim.Adam(generator.parameters(), 1e-3)
        with gp.keep_mask(generator, self.gan.masks["generator"], optimizer, ema=self.gan.generator_ema):
            generator(gp.sample_latents(8, 3)).square().sum().backward()
            optimizer.step()

    @rule()
    def save_and_load(self) -> None:
        path = Path(self.folder.name) / "gan.safetensors"
        if self.attempt(lambda: gp.save(path, self.gan)):
            loaded = gp.load(path, "cpu")
            assert equal(weights(loaded), weights(self.gan))
            assert {n: list(m) for n, m in loaded.masks.items()} == {
                n: list(m) for n, m in self.gan.masks.items()
            }
            assert dict(loaded.masks) == dict(self.gan.masks)
            assert loaded.masks.said_dense == self.dense_is_said

    @rule()
    def save_and_load_the_state(self) -> None:
        if self.state is None or self.state.gan is not self.gan or self.disagreement():
            return
        path = Path(self.folder.name) / "state.safetensors"
        self.state.save(path)
        self.state = gp.TrainState.load(path, "cpu")
        self.gan = self.state.gan
        assert self.gan.masks.said_dense == self.dense_is_said

    @rule()
    def sample(self) -> None:
        gp.sample(self.gan.generator_ema, 4)

    @invariant()
    def masks_are_those_that_were_said(self) -> None:
        if hasattr(self, "gan"):
            assert dict(self.gan.masks) == self.expected
            assert hooks_on(self.gan) == 0


Sequences.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSequences = Sequences.TestCase


def test_a_second_run_is_dense_only_if_that_was_said():
    gan = small_gan()
    mask = gp.prune(gan, 0.8)
    gp.train(gp.TrainState(gan, config()), Ring())
    assert gp.metrics.sparsity(gan.generator) == pytest.approx(mask.sparsity)
    gp.train(gp.TrainState(gan, config(steps=30)), Ring())
    assert gp.metrics.sparsity(gan.generator) == pytest.approx(mask.sparsity)
    gan.masks.clear()
    gp.train(gp.TrainState(gan, config(steps=30)), Ring())
    assert gp.metrics.sparsity(gan.generator) == 0


def test_a_wider_mask_lets_all_its_weights_grow():
    gan = small_gan()
    narrow = gp.prune(gan, 0.8)
    gp.train(gp.TrainState(gan, config()), Ring())
    wide = narrow | narrow.shuffled(1)
    gan.masks["generator"] = wide
    gp.train(gp.TrainState(gan, config(steps=30)), Ring())
    alive = gp.Mask.nonzero(gan.generator)
    assert wide.covers(alive)
    regrown, allowed = alive.kept - narrow.kept, wide.kept - narrow.kept
    assert regrown > 0.5 * allowed


def test_zeros_that_nobody_answers_for_are_refused_and_the_message_says_what_to_do():
    gan = small_gan()
    gp.prune(gan.generator, 0.8)
    with pytest.raises(gp.masks.MaskError, match=r"gp\.prune\(gan, \.\.\.\).*gan\.masks\.clear\(\)"):
        gp.train(gp.TrainState(gan, config()), Ring())
    gan.masks["generator"] = gp.Mask.nonzero(gan.generator)
    gp.train(gp.TrainState(gan, config()), Ring())
    assert gp.metrics.sparsity(gan.generator) == pytest.approx(0.8, abs=0.01)


def test_layers_that_begin_at_zero_are_no_pruned_layers():
    gan = small_gan()
    torch.nn.init.zeros_(gan.generator.layers.output.weight)
    gp.train(gp.TrainState(gan, config()), Ring())


def test_training_frees_its_optimisers():
    gan = small_gan()
    gp.prune(gan, 0.5, which="both")
    state = gp.train(gp.TrainState(gan, config()), Ring())
    gone = [weakref.ref(optimizer) for optimizer in state.optimizers.values()]
    del state
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_trainings_of_one_gan_cannot_be_nested():
    gan = small_gan()
    gp.prune(gan, 0.5)

    def nested(state):
        gp.train(gp.TrainState(gan, config()), Ring())

    with pytest.raises(gp.masks.MaskError, match="held already"):
        gp.train(gp.TrainState(gan, config()), Ring(), [nested])
    assert hooks_on(gan) == 0


def test_a_keeper_is_there_while_training_runs():
    gan, seen = small_gan(), []
    gp.prune(gan, 0.5)
    with pytest.raises(gp.masks.MaskError, match="is not being trained"):
        gan.masks.keeper("generator")

    def look(state):
        seen.append(gan.masks.keeper("generator").gradients)
        with pytest.raises(gp.masks.MaskError, match="holds no mask"):
            gan.masks.keeper("discriminator")

    gp.train(gp.TrainState(gan, config()), Ring(), [look])
    assert seen == ["masked"] * 4


def test_a_mask_that_does_not_fit_changes_nothing():
    gan, other = small_gan(), small_gan((4,))
    mask = gp.prune(gan, 0.5)
    before = weights(gan)
    wrong = gp.Mask.dense(other.generator)

    def replace(state):
        with pytest.raises(ValueError, match="mask does not fit"):
            gan.masks["generator"] = wrong
        assert gan.masks["generator"] == mask

    with pytest.raises(ValueError, match="mask does not fit"):
        gan.masks["generator"] = wrong
    assert equal(before, weights(gan)) and gan.masks["generator"] == mask
    gp.train(gp.TrainState(gan, config()), Ring(), [replace])
    gp.check_mask(gan.generator, mask)


def test_a_mask_cannot_be_changed_in_place():
    mask = gp.Mask({"a": torch.ones(4, dtype=torch.bool)})
    mask["a"][:] = False
    for part in mask.values():
        part[:] = False
    assert mask.kept == 4 and bool(mask["a"].all())


def test_the_order_of_layers_survives_a_file_and_does_not_matter_for_shuffling(tmp_path):
    gan = small_gan((6,) * 11)
    mask = gp.prune(gan, 0.5)
    gp.save(tmp_path / "gan.safetensors", gan)
    loaded = gp.load(tmp_path / "gan.safetensors", "cpu").masks["generator"]
    assert list(loaded) == list(mask) and loaded.shuffled(0) == mask.shuffled(0)
    backwards = gp.Mask(dict(reversed(list(mask.items()))))
    assert backwards.shuffled(0) == mask.shuffled(0)


def test_what_is_pruned_is_said_before_anything_is_done():
    gan = small_gan()
    before = weights(gan)
    for network, options in (
        (gan, {"which": "generator_ema"}),
        (gan, {"ema": gan.generator_ema}),
        (gan.generator, {"which": "discriminator"}),
        (gan.generator, {"which": "both"}),
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            gp.prune(network, 0.5, **options)
    assert equal(before, weights(gan)) and not gan.masks
    found = gp.prune(gan, 0.5, score="taylor", which="generator")
    assert found == gan.masks["generator"]
