"""SET and RigL: each update against brute force, and in the loop against the gradients of that very step."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.changing_masks import GANS, POINTS, Watch, checked_masks, counts, mlp, train
from tools.small_gans import config, small_gan
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import ganprune as gp
from ganprune.dynamic import DynamicSparseTraining, rigl_update, set_update
from ganprune.masks import effective_weights, pruned_count, weight_slots
from ganprune.training.callbacks import PRUNE

BOTH = ("generator", "discriminator")


def start(gan, steps=8, **changes):
    return gp.TrainState(gan, config(steps=steps, batch_size=4, **changes))


def brute_force_update(weight, kept, fraction, growth):
    """Drop and grow on lists of positions: sorted, one by one."""
    weight, kept, growth = (tensor.flatten().tolist() for tensor in (weight, kept, growth))
    alive = [i for i, k in enumerate(kept) if k]
    number = int(fraction * len(alive))
    stays = set(alive) - set(sorted(alive, key=lambda i: (abs(weight[i]), i))[:number])
    free = [i for i in range(len(kept)) if i not in stays]
    grown = sorted(free, key=lambda i: (growth[i], i))[len(free) - number :]
    return [i in stays or i in grown for i in range(len(kept))], stays


layer_shapes = st.lists(
    st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple), min_size=1, max_size=3
)


@given(layer_shapes, st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**20), st.booleans())
@settings(max_examples=40)
def test_updates_equal_brute_force_and_keep_every_count(shapes, density, fraction, seed, coarse):
    generator = gp.seeded(seed)
    draw = {f"layer{i}.weight": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    gradients = {key: torch.randn(value.shape, generator=generator) for key, value in draw.items()}
    if coarse:  # many ties
        draw, gradients = ({k: v.round() for k, v in t.items()} for t in (draw, gradients))
    mask = gp.Mask({k: torch.rand(v.shape, generator=generator) <= density for k, v in draw.items()})
    weights = {key: value * mask[key] for key, value in draw.items()}
    rigl = rigl_update(weights, gradients, mask, fraction)
    random = set_update(weights, mask, fraction, seed)
    assert counts(rigl) == counts(random) == counts(mask)
    for key in mask:
        wanted, stays = brute_force_update(weights[key], mask[key], fraction, gradients[key].abs())
        assert rigl[key].flatten().tolist() == wanted
        assert all(random[key].flatten()[i] for i in stays)
    assert set_update(weights, mask, fraction, seed) == random
    assert rigl_update(weights, gradients, mask, 0.0) == mask == set_update(weights, mask, 0.0)


def test_a_hand_checked_update():
    weights = {"w": torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0, 0.0])}
    mask = gp.Mask({"w": torch.tensor([1, 1, 1, 1, 0, 0]).bool()})
    gradients = {"w": torch.tensor([9.0, 9.0, 0.0, -5.0, 1.0, 3.0])}
    # 2 and 1 are dropped; the gradients −5 (of the weight that was just dropped) and 3 come
    assert rigl_update(weights, gradients, mask, 0.5)["w"].int().tolist() == [1, 1, 0, 1, 0, 1]


def test_set_grows_uniformly_at_random():
    weights = {"a.weight": torch.tensor([[5.0, 0.1, 0.0, 0.0, 0.0]])}
    mask = gp.Mask({"a.weight": weights["a.weight"] != 0})
    hits = sum(set_update(weights, mask, 0.5, seed)["a.weight"][0].int() for seed in range(400))
    assert hits[0] == 400
    assert (hits[1:] - 100).abs().max() < 40  # 4.6 standard deviations


@pytest.mark.parametrize("update", ["set", "rigl"])
@pytest.mark.parametrize(
    ("changes", "error", "argument"),
    [
        ({"fraction": -0.1}, ValueError, "fraction"),
        ({"fraction": math.nan}, ValueError, "fraction"),
        ({"fraction": "1"}, TypeError, "fraction"),
        ({"mask": {}}, TypeError, "mask"),
        ({"weights": {"a.weight": torch.ones(3, 2)}}, ValueError, "weights"),
        ({"weights": {"a.weight": torch.full((2, 3), math.nan)}}, ValueError, "weights"),
        ({"gradients": {}}, ValueError, "gradients"),
        ({"gradients": {"a.weight": torch.full((2, 3), math.inf)}}, ValueError, "gradients"),
    ],
)
def test_wrong_arguments_of_an_update_are_refused(update, changes, error, argument):
    ones = {"a.weight": torch.ones(2, 3)}
    mask = gp.Mask({"a.weight": torch.ones(2, 3, dtype=torch.bool)})
    arguments = {"weights": ones, "gradients": ones, "mask": mask, "fraction": 0.5, **changes}
    if update == "set":
        if argument == "gradients":
            return
        del arguments["gradients"]
    with pytest.raises(error, match=f"^{argument}"):
        {"set": set_update, "rigl": rigl_update}[update](**arguments)


# --- In the training loop -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("make", GANS.values(), ids=GANS)
def test_counts_are_those_of_erk_and_stay_in_every_layer(make, method):
    callbacks, seen = [], Watch(checked_masks)

    def make_callbacks(split):
        callbacks[:] = [
            DynamicSparseTraining(method, sparsity, network=network, every=2, end=7, seed=3)
            for network, sparsity in zip(BOTH, (0.7, 0.4), strict=True)
        ]
        return [*callbacks, seen]

    state = train(make, make_callbacks, 9)
    for network, sparsity, callback in zip(BOTH, (0.7, 0.4), callbacks, strict=True):
        masks = [masks[network] for masks in seen.seen.values()]
        assert masks[0].pruned == pruned_count(sparsity, masks[0].total)
        shares = gp.allocate(gp.score(state.gan.networks()[network], "magnitude"), sparsity, "erk")
        assert all(counts(mask) == counts(shares) for mask in masks)
        assert [row["step"] for row in callback.rows] == [2, 4, 6]
        changed = {step for step in range(2, 10) if masks[step - 1] != masks[step - 2]}
        assert {row["step"] for row in callback.rows if row["moved"]} == changed
        row = callback.rows[0]
        assert row["fraction"] == pytest.approx(0.15 * (1 + math.cos(math.pi * 2 / 7)))
        assert row["kept"] == masks[0].kept
        assert 0 < row["moved"] <= row["fraction"] * row["kept"]


@pytest.mark.parametrize("network", BOTH)
@pytest.mark.parametrize("norm", ["none", "spectral"])
@pytest.mark.parametrize("critic_steps", [1, 2])
def test_rigl_in_the_loop_is_the_update_on_the_gradients_of_that_step(network, norm, critic_steps):
    gan, split = mlp(norm)
    slots, dense, before = weight_slots(gan.networks()[network]), {}, {}
    for key, slot in slots.items():  # registered first, so these see what autograd made of every pass

        def record(parameter, key=key):
            dense[key] = parameter.grad.clone()

        slot.raw.register_post_accumulate_grad_hook(record)

    def look(state):
        effective = {key: slot.effective().clone() for key, slot in slots.items()}
        before[state.step] = effective, dict(dense), state.masks[network]

    training = DynamicSparseTraining("rigl", 0.6, network=network, every=3, end=100)
    seen = Watch(checked_masks)
    state = start(gan, 7, critic_steps=critic_steps)
    gp.train(state, split, [Watch(look, order=PRUNE - 1), training, seen])
    for step in (3, 6):
        effective, gradients, mask = before[step]
        assert any(gradients[key][~kept].abs().sum() > 0 for key, kept in mask.items())
        for key, kept in mask.items():
            fraction = training.fraction_at(step, 100)
            wanted, _ = brute_force_update(effective[key], kept, fraction, gradients[key].abs())
            assert seen.seen[step][network][key].flatten().tolist() == wanted


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_gradients_that_are_let_through_move_nothing_that_is_kept(optimizer):
    """RigL that does not move its mask yet trains as a run with that mask and masked gradients does."""
    results = []
    for callbacks in ([DynamicSparseTraining("rigl", every=100, end=200)], []):
        gan, split = mlp()
        gp.prune(gan, 0.6)
        gp.train(start(gan, optimizer=optimizer, weight_decay=0.1), split, callbacks)
        results.append(gan)
    for one, other in zip(*(gan.generator.parameters() for gan in results), strict=True):
        assert torch.equal(one, other)


def test_under_weight_norm_the_effective_weights_are_compared():
    torch.manual_seed(0)
    first = weight_norm(nn.Linear(2, 4))
    discriminator = nn.Sequential(first, nn.LeakyReLU(0.2), nn.Linear(4, 1), nn.Flatten(0))
    with torch.no_grad():  # the first output is hardly used, though its raw weights are the largest
        first.parametrizations.weight.original0[0] = 1e-3
        first.parametrizations.weight.original1[0] *= 100
    gan = gp.GAN(small_gan().generator, discriminator)
    kept = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]]).bool()
    gan.masks["discriminator"] = gp.Mask({"0.weight": kept})
    rigl = DynamicSparseTraining(
        "rigl", network="discriminator", every=1, end=2, fraction=0.2, decay="constant"
    )
    gp.train(start(gan, 1, learning_rate=1e-6), POINTS, [rigl])
    new = gan.masks["discriminator"]["0.weight"]
    assert new[0].sum() == 1
    assert new[1:].all()


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("new_values", ["zero", "random"])
@pytest.mark.parametrize("network", BOTH)
def test_what_regrows_starts_without_moments(method, new_values, network):
    gan, split = GANS["dcgan"]()
    slots = weight_slots(gan.networks()[network])

    def look(state):
        moments = state.optimizers[network].state
        return {
            key: [
                state.masks[network][key],
                slot.raw.detach().clone(),
                moments[slot.raw]["exp_avg"].clone(),
                moments[slot.raw]["exp_avg_sq"].clone(),
            ]
            for key, slot in slots.items()
        }

    training = DynamicSparseTraining(
        method, 0.6, network=network, every=3, end=9, fraction=0.5, new_values=new_values
    )
    before, after = Watch(look, order=PRUNE - 1), Watch(look)
    gp.train(start(gan, 4), split, [before, training, after])
    moved = 0
    for key, (new, raw, *moments) in after.seen[3].items():
        old, raw_before, *moments_before = before.seen[3][key]
        regrown, stayed = new & ~old, new & old
        moved += int(regrown.sum())
        for value, earlier in zip(moments, moments_before, strict=True):
            assert value[regrown].abs().sum() == 0
            assert torch.equal(value[stayed], earlier[stayed])
        assert torch.equal(raw[stayed], raw_before[stayed])
        assert (raw[~new] == 0).all()
        assert (raw[regrown] != 0).all() if new_values == "random" else (raw[regrown] == 0).all()
        if new_values == "random" and int(regrown.sum()) > 100:
            assert float(raw[regrown].std()) == pytest.approx(float(raw[stayed].std()), rel=0.3)
    assert moved == training.rows[0]["moved"] > 0


def test_an_update_that_a_norm_refuses_changes_nothing():
    torch.manual_seed(0)
    discriminator = nn.Sequential(
        weight_norm(nn.Linear(2, 40)), nn.LeakyReLU(0.2), nn.Linear(40, 1), nn.Flatten(0)
    )
    gan = gp.GAN(small_gan().generator, discriminator)
    kept = torch.zeros(40, 2, dtype=torch.bool)
    kept[:, 0] = True  # one weight per output: any move empties one
    gan.masks["discriminator"] = mask = gp.Mask({"0.weight": kept})
    before = Watch(lambda state: [p.detach().clone() for p in discriminator.parameters()], order=PRUNE - 1)
    training = DynamicSparseTraining(
        "set", network="discriminator", every=1, end=9, fraction=0.5, new_values="random"
    )
    with pytest.raises(ValueError, match="mask empties what a norm divides by"):
        gp.train(start(gan), POINTS, [before, training])
    assert all(torch.equal(a, b) for a, b in zip(before.seen[1], discriminator.parameters(), strict=True))
    assert gan.masks["discriminator"] is mask
    gan.masks.check()


def test_the_first_mask_is_the_one_in_force():
    gan, split = mlp()
    mask = gp.prune(gan, 0.5, allocation="uniform")
    with pytest.raises(
        ValueError, match="sparsity must be that of the mask of the generator, 0.5.*, got 0.9"
    ):
        gp.train(start(gan), split, [DynamicSparseTraining("set", 0.9)])
    training = DynamicSparseTraining("set", 0.5, every=1, fraction=1.0, decay="constant")
    gp.train(start(gan, 4), split, [training])
    assert counts(gan.masks["generator"]) == counts(mask)
    assert [row["step"] for row in training.rows] == [1, 2]  # 75% of four steps is step 3: too late
    assert [row["fraction"] for row in training.rows] == [1.0, 1.0]
    with pytest.raises(ValueError, match="sparsity must be given for the discriminator, which has no mask"):
        gp.train(start(gan), split, [DynamicSparseTraining("set", network="discriminator")])


@pytest.mark.parametrize("protect", ["layers.output", ["layers.output"], iter(["layers.output"])])
def test_what_is_protected_is_no_part_of_the_first_mask(protect):
    state = train(mlp, lambda split: [DynamicSparseTraining("set", 0.5, protect=protect)], 2)
    assert "layers.output.weight" not in state.masks["generator"]
    assert state.masks["generator"].sparsity == 0.5


@pytest.mark.parametrize("steps", [3, 10])
def test_the_fraction_is_half_a_cosine_from_alpha_to_zero(steps):
    """Evci et al. 2020, section 3: alpha at step 0, half of it midway, zero at the end."""
    training = DynamicSparseTraining(sparsity=0.5, fraction=0.4)
    fractions = [training.fraction_at(step, 2 * steps) for step in (0, steps, 2 * steps)]
    assert fractions == pytest.approx([0.4, 0.2, 0])
    angles = [math.acos(2 * training.fraction_at(step, 12) / 0.4 - 1) for step in range(13)]
    assert angles == pytest.approx([math.pi * step / 12 for step in range(13)], abs=1e-6)


def test_growing_by_gradients_that_were_masked_is_refused():
    gan, split = mlp()
    training = DynamicSparseTraining("rigl", every=1, end=9)
    with pytest.raises(gp.masks.MaskError, match="the generator has no mask: call begin"):
        gp.train(start(gan), split, [lambda state: training(state)])
    gan.masks.clear()
    gp.prune(gan, 0.5)
    with pytest.raises(gp.masks.MaskError, match="the gradients of the generator were masked.* call begin"):
        gp.train(start(gan), split, [lambda state: training(state)])


def test_a_loop_of_ones_own():
    gan, _ = mlp()
    network = gan.generator
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    mask = gp.prune(network, 0.6, score="random", allocation="erk")
    with gp.keep_mask(network, mask, optimizer) as keeper:
        keeper.gradients = "dense"
        for step in range(1, 7):
            optimizer.zero_grad()
            network(gp.sample_latents(8, 3, step)).square().mean().backward()
            optimizer.step()
            if step % 3 == 0:
                gradients = {key: weight.grad for key, weight in gp.prunable_weights(network).items()}
                keeper.update(rigl_update(effective_weights(network), gradients, keeper.mask, 0.3))
        assert keeper.mask != mask
        assert counts(keeper.mask) == counts(mask)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"method": "rig"}, ValueError),
        ({"network": "generator_ema"}, ValueError),
        ({"sparsity": 1}, ValueError),
        ({"sparsity": "high"}, TypeError),
        ({"allocation": "lamp"}, ValueError),
        ({"fraction": 0}, ValueError),
        ({"fraction": 1.1}, ValueError),
        ({"fraction": None}, TypeError),
        ({"every": 0}, ValueError),
        ({"end": 0}, ValueError),
        ({"decay": "linear"}, ValueError),
        ({"new_values": "big"}, ValueError),
        ({"seed": "x"}, ValueError),
    ],
)
def test_wrong_arguments_of_dynamic_sparse_training_are_refused(arguments, error):
    with pytest.raises(error, match=f"^{next(iter(arguments))} must be"):
        DynamicSparseTraining(**arguments)
