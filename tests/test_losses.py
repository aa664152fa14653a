"""Losses against their formulas, penalties against finite differences and closed forms."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import ganprune as gp

REAL = torch.tensor([2.0, -1.0, 0.3, 40.0], dtype=torch.float64)
FAKE = torch.tensor([-3.0, 0.5, 1.5], dtype=torch.float64)


def test_non_saturating_is_cross_entropy():
    loss = gp.losses.get_loss("non-saturating")
    ones, zeros = torch.ones_like(REAL), torch.zeros_like(FAKE)
    expected = binary_cross_entropy_with_logits(REAL, ones) + binary_cross_entropy_with_logits(FAKE, zeros)
    assert torch.allclose(loss.discriminator(REAL, FAKE), expected)
    assert torch.allclose(loss.generator(FAKE), binary_cross_entropy_with_logits(FAKE, torch.ones_like(FAKE)))


def test_minimax_generator_plays_the_opposite_of_the_fake_part():
    loss = gp.losses.get_loss("minimax")
    assert torch.allclose(loss.generator(FAKE), torch.log(1 - torch.sigmoid(FAKE)).mean())
    assert torch.allclose(loss.generator(FAKE), -loss.fake(FAKE))


def test_hinge_and_wasserstein_by_hand():
    hinge, wasserstein = gp.losses.get_loss("hinge"), gp.losses.get_loss("wasserstein")
    by_hand = (
        sum(max(0.0, 1 - r) for r in REAL.tolist()) / 4 + sum(max(0.0, 1 + f) for f in FAKE.tolist()) / 3
    )
    assert hinge.discriminator(REAL, FAKE).item() == pytest.approx(by_hand)
    assert wasserstein.discriminator(REAL, FAKE).item() == pytest.approx((FAKE.mean() - REAL.mean()).item())
    assert (
        hinge.generator(FAKE).item()
        == wasserstein.generator(FAKE).item()
        == pytest.approx(-FAKE.mean().item())
    )


@pytest.mark.parametrize("name", gp.losses.LOSSES)
def test_losses_stay_finite_at_extreme_logits(name):
    loss, extreme = gp.losses.get_loss(name), torch.tensor([-1e4, 1e4])
    assert loss.discriminator(extreme, extreme).isfinite()
    assert loss.generator(extreme).isfinite()
    assert gp.losses.get_loss(loss) is loss


def test_saturation():
    """At a confident discriminator the minimax gradient vanishes and the non-saturating one does not."""
    gradients = {}
    for name in ("minimax", "non-saturating"):
        logit = torch.tensor([-12.0], requires_grad=True)
        gp.losses.get_loss(name).generator(logit).backward()
        gradients[name] = logit.grad.abs().item()
    assert gradients["minimax"] < 1e-5 and gradients["non-saturating"] > 0.99


def test_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss must be one of .* got 'l2'"):
        gp.losses.get_loss("l2")


class Linear(nn.Module):
    """D(x) = a·x: its input gradient is a everywhere."""

    def __init__(self, slope):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        return x.flatten(1) @ self.slope


def test_penalties_of_a_linear_critic_have_closed_forms():
    critic, x = Linear([3.0, 0.0, 4.0, 0.0]), torch.randn(6, 1, 2, 2)
    penalty = gp.losses.gradient_penalty(critic, x, x + 1)
    assert penalty.item() == pytest.approx((5 - 1) ** 2)
    assert gp.losses.r1_penalty(critic, x).item() == pytest.approx(25.0)
    penalty.backward()
    assert torch.allclose(critic.slope.grad, 2 * (5 - 1) / 5 * torch.tensor([3.0, 0.0, 4.0, 0.0]))


def test_gradient_penalty_takes_the_norm_over_the_whole_image_and_is_seeded():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    real, fake = torch.randn(5, 1, 2, 2).double(), torch.randn(5, 1, 2, 2).double()
    first, again, other = (gp.losses.gradient_penalty(critic, real, fake, seed) for seed in (1, 1, 2))
    assert first == again and first != other
    mix = torch.rand(5, generator=gp.seeded(gp.step_seed(1, 0, "mix"))).double().view(-1, 1, 1, 1)
    points, step, norms = mix * real + (1 - mix) * fake, 1e-6, []
    for point in points:
        slopes = []
        for index in range(4):
            shift = torch.zeros(4, dtype=torch.float64)
            shift[index] = step
            up, down = (critic((point + sign * shift.view(1, 2, 2))[None]) for sign in (1, -1))
            slopes.append((up - down).item() / (2 * step))
        norms.append(sum(s * s for s in slopes) ** 0.5)
    assert first.item() == pytest.approx(sum((n - 1) ** 2 for n in norms) / 5, rel=1e-5)
    with pytest.raises(ValueError, match="real and fake must have one shape"):
        gp.losses.gradient_penalty(critic, real, fake[:2])


def test_loss_closures_yield_one_scalar_per_batch_and_restore_everything():
    gan = gp.dcgan(width=4, device="cpu")
    gan.discriminator.train()
    state = copy.deepcopy(gan.discriminator.state_dict())
    for loss_fn, network in (
        (gp.generator_loss(gan, batches=3, batch_size=4), gan.generator),
        (gp.losses.discriminator_loss(gan, gp.mnist("cpu").test, batches=3, batch_size=4), gan.discriminator),
    ):
        losses = list(loss_fn(network))
        assert len(losses) == 3 and all(loss.ndim == 0 and loss.requires_grad for loss in losses)
        assert [x.item() for x in losses] == pytest.approx([x.item() for x in loss_fn(network)], rel=1e-2)
    assert all(p.requires_grad for p in gan.discriminator.parameters())
    assert gan.discriminator.training
    list(gp.generator_loss(gan, batches=1)(gan.generator))
    kept = {k: v for k, v in state.items() if not k.endswith(("._u", "._v"))}
    assert all(torch.equal(v, gan.discriminator.state_dict()[k]) for k, v in kept.items())


def test_generator_loss_reaches_the_generator_and_not_the_discriminator():
    gan = gp.dcgan(width=4, device="cpu")
    for loss in gp.generator_loss(gan, batches=1)(gan.generator):
        loss.backward()
    assert all(p.grad is not None for p in gan.generator.parameters())
    assert all(p.grad is None for p in gan.discriminator.parameters())


@pytest.mark.parametrize("dtypes", [("float64", "float64"), ("float64", "float32"), ("bfloat16", "float32")])
def test_closures_take_networks_of_any_precision(dtypes):
    gan = gp.dcgan(width=4, device="cpu")
    gan.generator.to(getattr(torch, dtypes[0]))
    gan.discriminator.to(getattr(torch, dtypes[1]))
    for loss in gp.generator_loss(gan, batches=1, batch_size=4)(gan.generator):
        loss.backward()
        assert loss.isfinite()
    for loss in gp.losses.discriminator_loss(gan, gp.mnist("cpu").test, 1, 4)(gan.discriminator):
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad is not None for p in gan.generator.parameters())


def closures(discriminator):
    gan = gp.GAN(gp.dcgan(width=4, device="cpu").generator, discriminator)
    return (
        (gp.generator_loss(gan, batches=2, batch_size=4), gan.generator),
        (gp.losses.discriminator_loss(gan, gp.mnist("cpu").test, batches=2, batch_size=4), gan.discriminator),
    )


def test_a_discriminator_that_ends_in_a_sigmoid_is_named():
    class Probabilities(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(784, 1)

        def forward(self, x):
            return torch.sigmoid(self.layer(x.flatten(1))).squeeze(1)

    for loss_fn, network in closures(Probabilities()):
        with pytest.warns(UserWarning, match="Probabilities ends in a sigmoid") as caught:
            list(loss_fn(network))
        assert len(caught) == 1
    for loss_fn, network in closures(nn.Sequential(nn.Flatten(), nn.Linear(784, 1), nn.Flatten(0))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            list(loss_fn(network))


def test_networks_that_return_no_tensor_are_named():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(784, 1)

        def forward(self, x):
            return self.layer(x.flatten(1)), x

    for loss_fn, network in closures(Pair()):
        with pytest.raises(
            TypeError, match=r"Pair must give logits \(N,\) as one tensor, got tuple; gp.adapt"
        ):
            list(loss_fn(network))

    class Images(nn.Module):
        latent_dim = 3

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 784)

        def forward(self, z):
            return self.layer(z), z

    gan = gp.GAN(Images(), gp.dcgan(width=4, device="cpu").discriminator)
    with pytest.raises(TypeError, match=r"Images must give samples .* as one tensor, got tuple; gp.adapt"):
        list(gp.generator_loss(gan)(gan.generator))


@pytest.mark.parametrize("argument", ["batches", "batch_size"])
def test_less_than_one_batch_or_sample_is_refused(argument):
    gan = gp.dcgan(width=4, device="cpu")
    for factory in (
        gp.generator_loss,
        lambda gan, **options: gp.losses.discriminator_loss(gan, None, **options),
    ):
        with pytest.raises(ValueError, match=argument):
            factory(gan, **{argument: 0})
