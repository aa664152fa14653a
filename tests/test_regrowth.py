"""Dynamic masks take each network once and protect what is named; fractions and growth by the published rules."""

import math

import pytest
import torch

import ganprune as gp
from ganprune.dynamic.balance import BalanceController
from ganprune.dynamic.regrowth import DynamicSparseTraining, rigl_update

BOTH = ("generator", "discriminator")


class Noise:
    def batch(self, batch_size, seed, step):
        return torch.randn(batch_size, 3, generator=torch.Generator().manual_seed(seed + step))


def start():
    gan = gp.mlp_gan((3,), latent_dim=4, hidden=(12, 10), norm="none", device="cpu")
    return gp.TrainState(gan, gp.TrainConfig(steps=4, batch_size=4, precision="float32"))


def test_a_network_that_is_named_twice_is_refused():
    """It would be updated twice at each step, and drop twice the fraction."""
    with pytest.raises(ValueError, match="networks must name each network once, got generator, generator"):
        DynamicSparseTraining(sparsity=0.5, networks=("generator", "generator"))


def test_protection_of_a_network_that_is_not_trained_sparsely_is_refused():
    """A misspelt name would protect nothing."""
    for networks, names in (("generator", {"discriminator": ["output"]}), (BOTH, {"generater": "output"})):
        with pytest.raises(ValueError, match="protect is given for .*, which is not among the networks"):
            DynamicSparseTraining(sparsity=0.5, networks=networks, protect=names)


@pytest.mark.parametrize(
    "protect",
    ["layers.output", ["layers.output"], dict.fromkeys(BOTH, "layers.output"), iter(["layers.output"])],
)
def test_what_is_protected_is_protected_in_every_network(protect):
    state, names = start(), protect
    DynamicSparseTraining(sparsity=0.5, networks=BOTH, protect=names).begin(state)
    for network in BOTH:
        assert "layers.output.weight" not in state.masks[network] and state.masks[network].sparsity == 0.5


def test_the_controller_protects_layers_named_by_an_iterator():
    state = start()
    controller = BalanceController(Noise(), density=0.5, protect=iter(["layers.output"]))
    assert controller.protect == ["layers.output"]
    controller.begin(state)
    assert "layers.output.weight" not in state.masks["discriminator"]


@pytest.mark.parametrize("steps", [3, 10])
def test_the_fraction_is_half_a_cosine_from_alpha_to_zero(steps):
    """Evci et al. 2020, section 3: alpha at step 0, half of it midway, zero at the end."""
    training = DynamicSparseTraining(sparsity=0.5, fraction=0.4)
    assert training.fraction_at(0, 2 * steps) == pytest.approx(0.4)
    assert training.fraction_at(steps, 2 * steps) == pytest.approx(0.2)
    assert training.fraction_at(2 * steps, 2 * steps) == pytest.approx(0)
    angles = [math.acos(2 * training.fraction_at(step, 12) / 0.4 - 1) for step in range(13)]
    assert angles == pytest.approx([math.pi * step / 12 for step in range(13)], abs=1e-6)


def test_what_was_dropped_may_grow_again_and_what_stays_never_does():
    """As in the authors' code, which masks the gradients of what stays alone."""
    weights = {"w": torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0, 0.0])}
    kept = gp.Mask({"w": torch.tensor([True, True, True, True, False, False])})
    gradients = {"w": torch.tensor([9.0, 9.0, 0.0, 5.0, 1.0, 3.0])}
    assert rigl_update(weights, gradients, kept, 0.5)["w"].tolist() == [True, True, False, True, False, True]
