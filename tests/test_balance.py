"""The balance ratio against its formula, and a discriminator whose density follows it."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.changing_masks import GANS, POINTS, Watch, checked_masks, mlp
from tools.small_gans import config, equal, weights
from torch import nn

import ganprune as gp
from ganprune.dynamic import BalanceController, balance_ratio
from ganprune.training.callbacks import PRUNE


def start(gan, steps=8, **changes):
    return gp.TrainState(gan, config(steps=steps, batch_size=4, **changes))


def tensors(network):
    return {name: t.detach() for name, t in (*network.named_parameters(), *network.named_buffers())}


def ratio_by_hand(after, discriminator, before, real, z):
    after, before, discriminator = (copy.deepcopy(network) for network in (after, before, discriminator))
    with torch.no_grad():
        then, now, truth = (discriminator(x).mean() for x in (before(z), after(z), real))
    return float((now - then) / (truth - then))


@pytest.mark.parametrize("make", GANS.values(), ids=GANS)
def test_the_balance_ratio_is_its_formula_and_changes_nothing(make):
    gan, split = make()
    before = copy.deepcopy(gan.generator)
    with torch.no_grad():
        for parameter in gan.generator.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=gp.seeded(0)))
    real, z = split.batch(16, 0, 0), gp.sample_latents(16, gp.networks.latent_dim_of(gan.generator), 1)
    gan.generator.train(), gan.discriminator.train(), before.train()
    kept, earlier, noise = weights(gan), copy.deepcopy(before.state_dict()), torch.get_rng_state()
    ratio, lead = balance_ratio(gan.generator, gan.discriminator, tensors(before), real, z)
    assert equal(kept, weights(gan))
    assert equal(earlier, before.state_dict())
    assert torch.equal(noise, torch.get_rng_state())
    by_hand = ratio_by_hand(gan.generator, gan.discriminator, before, real, z)
    assert ratio is None if lead <= 0 else ratio == pytest.approx(by_hand, rel=1e-3)


def test_the_balance_ratio_of_networks_with_known_answers():
    generator, discriminator = nn.Linear(1, 1), nn.Flatten(0)
    before = {"weight": torch.zeros(1, 1), "bias": torch.tensor([2.0])}
    with torch.no_grad():
        generator.weight.zero_(), generator.bias.fill_(5.0)
    real, z = torch.full((7, 1), 8.0), torch.randn(3, 1)
    assert balance_ratio(generator, discriminator, before, real, z) == (0.5, 6.0)
    assert balance_ratio(generator, discriminator, before, real - 6, z) == (None, 0.0)
    assert balance_ratio(generator, discriminator, before, real - 7, z) == (None, -1.0)
    assert balance_ratio(generator, discriminator, before, real * math.inf, z)[0] is None


class OnDevice(torch.overrides.TorchFunctionMode):
    """Refuses to make float64 of a tensor that was not moved to the CPU, as Apple's GPUs would."""

    def __init__(self):
        self.moved = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name == "double" and id(args[0]) not in self.moved:
            raise TypeError("Cannot convert a MPS Tensor to float64")
        result = function(*args, **(kwargs or {}))
        if name == "cpu":
            self.moved.add(id(result))
            self.keep = result  # so that its id is not given to another
        return result


def test_no_float64_is_asked_of_a_device():
    gan, split = mlp()
    real, z = split.batch(16, 0, 0), gp.sample_latents(16, 3, 1)
    with OnDevice():
        balance_ratio(gan.generator, gan.discriminator, tensors(gan.generator), real, z)


@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("allocation", ["erk", "uniform", "global"])
@pytest.mark.parametrize("make", GANS.values(), ids=GANS)
def test_the_density_follows_the_balance_ratio(make, allocation, grow):
    gan, split = make()
    options = {"every": 2, "increment": 0.1, "bounds": (0.3, 0.75), "grow": grow, "samples": 8}
    options["allocation"] = allocation
    found = []
    for band, density in (((-1e9, -1e8), 0.5), ((1e8, 1e9), None)):  # too weak, then too strong
        controller = BalanceController(split, band=band, density=density, **options)
        seen, state = Watch(checked_masks), start(gan, learning_rate=1e-2)
        expected = gan.masks["discriminator"].density if gan.masks else density
        gp.train(state, split, [controller, seen])
        masks = [masks["discriminator"] for masks in seen.seen.values()]
        for sooner, later in zip(masks, masks[1:], strict=False):
            assert later.covers(sooner) if density else sooner.covers(later)
        assert [row["step"] for row in controller.rows] == [2, 4, 6, 8]
        for row in controller.rows:
            if row["balance_ratio"] is None:
                assert row["action"].startswith("skipped: the discriminator does not tell real from")
                assert row["lead"] <= 0
                continue
            if row["action"] == "skipped: the discriminator has no gradient to grow by":
                assert grow == "gradient" and row["density"] == expected
                continue
            moved = min(0.75, expected + 0.1) if density else max(0.3, expected - 0.1)
            at_bound = abs(moved - expected) < 0.5 / masks[0].total
            assert row["action"] == ("at bound" if at_bound else "grown" if density else "shrunk")
            assert row["density"] == pytest.approx(moved, abs=1.5 / masks[0].total)
            expected = row["density"]
            found.append(row["action"])
    assert found or make is not mlp  # untrained networks may tell nothing apart


def test_what_grows_has_the_largest_gradients():
    gan, split = mlp()
    gp.prune(gan, 0.5, which="discriminator", score="random")
    look = Watch(
        lambda state: {k: w.grad.clone() for k, w in gp.prunable_weights(gan.discriminator).items()},
        order=PRUNE - 1,
    )
    masks = Watch(lambda state: state.masks["discriminator"])
    controller = BalanceController(split, band=(-1e9, -1e8), every=1, allocation="global", increment=0.02)
    gp.train(start(gan, 12, learning_rate=2e-2), split, [look, controller, masks])
    grown = 0
    for step in range(2, 13):
        old, new = masks.seen[step - 1], masks.seen[step]
        came = torch.cat([look.seen[step][k][new[k] & ~old[k]].abs() for k in new])
        out = torch.cat([look.seen[step][k][~new[k]].abs() for k in new])
        grown += len(came)
        assert not len(came) or came.min() >= out.max()
    assert grown


@given(st.integers(0, 2**20), st.sampled_from(["erk", "uniform", "global"]), st.floats(0.01, 0.5))
@settings(max_examples=20)
def test_from_any_mask_the_density_grows_by_what_was_asked(seed, allocation, increment):
    gan, split = mlp()
    mask = gp.Mask.dense(gan.discriminator)
    generator = gp.seeded(seed)
    mask = gp.Mask({key: torch.rand(kept.shape, generator=generator) < 0.4 for key, kept in mask.items()})
    gan.masks["discriminator"] = mask
    controller = BalanceController(
        split, band=(-1e9, -1e8), every=1, allocation=allocation, increment=increment, grow="random"
    )
    gp.train(start(gan, 1, learning_rate=1e-2), split, [controller])
    if controller.rows[0]["action"] == "grown":
        assert gan.masks["discriminator"].covers(mask)
        assert gan.masks["discriminator"].kept == pytest.approx(mask.kept + increment * mask.total, abs=1)


def test_before_and_after_are_one_update_apart():
    gan, split = mlp()
    controller = BalanceController(split, band=(-1e9, 1e9), every=3, samples=16, seed=5)
    generators, critics = (
        Watch(lambda state, name=name: copy.deepcopy(state.gan.networks()[name]))
        for name in ("generator", "discriminator")
    )
    gp.train(start(gan, 6, learning_rate=1e-2), split, [controller, generators, critics])
    assert gan.masks["discriminator"].density == 1
    assert [row["step"] for row in controller.rows] == [3, 6]
    for row in controller.rows:
        step, draw = row["step"], gp.step_seed(5, row["step"], "balance")
        real, z = split.batch(16, draw, 0), gp.sample_latents(16, 3, draw)
        by_hand = ratio_by_hand(generators.seen[step], critics.seen[step], generators.seen[step - 1], real, z)
        if row["lead"] > 0:
            assert row["action"] == "in band"
            assert row["balance_ratio"] == pytest.approx(by_hand, rel=1e-3)
    assert any(row["lead"] > 0 for row in controller.rows)


def test_a_discriminator_that_tells_nothing_apart_is_skipped():
    gan, split = mlp()

    def blind(state):
        gan.discriminator.layers.output.weight.data.zero_()

    blind.order = PRUNE - 1
    controller = BalanceController(split, band=(5, 6), every=1, density=0.5)
    state = gp.train(start(gan, 2), split, [blind, controller])
    assert [(row["balance_ratio"], row["lead"]) for row in controller.rows] == [(None, 0.0)] * 2
    assert all(row["action"].startswith("skipped") for row in controller.rows)
    assert state.masks["discriminator"].density == pytest.approx(0.5, abs=0.01)


def test_a_controller_that_was_not_begun_says_so():
    gan, split = mlp()
    with pytest.raises(gp.masks.MaskError, match="the discriminator has no mask: call begin"):
        BalanceController(split)(start(gan))
    gan.masks["discriminator"] = gp.Mask.dense(gan.discriminator)
    control = BalanceController(split, every=1)
    with pytest.raises(
        gp.masks.MaskError, match="the generator as it was before step 1 is not known: call begin"
    ):
        gp.train(start(gan, 2), split, [lambda state: control(state)])


@pytest.mark.parametrize("protect", ["layers.output", iter(["layers.output"])])
def test_what_is_protected_is_no_part_of_the_first_mask(protect):
    gan, split = mlp()
    gp.train(start(gan, 1), split, [BalanceController(split, density=0.5, protect=protect)])
    assert "layers.output.weight" not in gan.masks["discriminator"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"split": [1]}, TypeError),
        ({"band": 0.5}, TypeError),
        ({"band": (0.5, 0.4)}, ValueError),
        ({"band": (0.5, math.nan)}, ValueError),
        ({"increment": 0}, ValueError),
        ({"increment": 2}, ValueError),
        ({"bounds": (0, 1)}, ValueError),
        ({"bounds": (0.5, 1.5)}, ValueError),
        ({"density": 0.01}, ValueError),
        ({"every": 0}, ValueError),
        ({"samples": 0}, ValueError),
        ({"grow": "magnitude"}, ValueError),
        ({"allocation": "lamp"}, ValueError),
        ({"end": 0}, ValueError),
    ],
)
def test_wrong_arguments_of_the_controller_are_refused(arguments, error):
    with pytest.raises(error, match=f"^{next(iter(arguments))} must"):
        BalanceController(**{"split": POINTS, **arguments})
