"""Masks that change during training: against brute force, at every step, resumed, on networks never seen."""

import copy
import math

import pytest
import torch
import unseen_networks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import ganprune as gp
from ganprune.dynamic import balance, common, regrowth
from ganprune.dynamic.balance import BalanceController, balance_ratio
from ganprune.dynamic.gradual import GradualPruning
from ganprune.dynamic.regrowth import DynamicSparseTraining, rigl_update, set_update
from ganprune.dynamic.schedules import cubic
from ganprune.masks.weights import effective_weights, weight_slots
from ganprune.training.callbacks import PRUNE


class Noise:
    """Real samples that are a pure function of (seed, step)."""

    def __init__(self, shape):
        self.shape = shape

    def batch(self, batch_size, seed, step):
        return torch.randn(batch_size, *self.shape, generator=torch.Generator().manual_seed(seed + step))


IMAGES, POINTS = Noise((1, 28, 28)), Noise((3,))


def dcgan(norm="spectral", seed=0):
    return gp.dcgan(width=4, latent_dim=4, norm=norm, seed=seed, device="cpu"), IMAGES


def mlp(norm="none", seed=0):
    return gp.mlp_gan((3,), latent_dim=4, hidden=(12, 10), norm=norm, seed=seed, device="cpu"), POINTS


def unseen():
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Conv2d(1, 4, 4, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(36, 1))
    for index in (0, 3):
        spectral_norm(discriminator[index])
    return gp.networks.GAN(
        unseen_networks.LinearFirst(), nn.Sequential(*discriminator, nn.Flatten(0))
    ), Noise((1, 8, 8))


GANS = {"dcgan": dcgan, "mlp": mlp, "unseen": unseen}


def start(gan, steps=8, masks=None, **changes):
    return gp.TrainState(
        gan, gp.TrainConfig(**{"steps": steps, "batch_size": 4, "precision": "float32", **changes}), masks
    )


class Watch:
    """Keeps what a function of the state gives after each step."""

    def __init__(self, look, order=9):
        self.look, self.order, self.seen = look, order, {}

    def __call__(self, state):
        self.seen[state.step] = self.look(state)


def run(state, split, *callbacks):
    for callback in callbacks:
        getattr(callback, "begin", lambda state: None)(state)
    gp.train(state, split, callbacks)
    return state


def checked_masks(state):
    """The masks after a step, after a look whether all they promise holds."""
    for network, keeper in state.keepers.items():
        keeper.check()
        if network == "generator":
            gp.check_mask(state.gan.generator_ema, keeper.mask)
    return dict(state.masks)


def counts(mask):
    return {row["name"]: row["kept"] for row in mask.layers()}


def weights(gan):
    return {f"{n}/{k}": v.clone() for n, net in gan.networks().items() for k, v in net.state_dict().items()}


def moments(state):
    return {
        f"{name}/{i}/{key}": value
        for name, optimizer in state.optimizers.items()
        for i, entries in optimizer.state_dict()["state"].items()
        for key, value in entries.items()
    }


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [key for key, value in first.items() if not torch.equal(value, second[key])] == []


def assert_resumes(tmp_path, make, callbacks, stops, steps=8, **changes):
    """Killed at any of these steps and resumed, a run ends as one that was never interrupted, bit for bit."""
    gan, split = make()
    straight = run(start(gan, steps, **changes), split, *callbacks(gan, split))
    for stop in stops:
        path = tmp_path / f"{stop}.safetensors"

        def leave(state, stop=stop, path=path):
            if state.step == stop:
                state.save(path)
                raise KeyboardInterrupt

        leave.order = 9
        gan, split = make()
        with pytest.raises(KeyboardInterrupt):
            run(start(gan, steps, **changes), split, *callbacks(gan, split), leave)
        resumed = gp.TrainState.load(path, "cpu")
        assert resumed.step == stop
        run(resumed, split, *callbacks(resumed.gan, split))
        assert_equal(weights(straight.gan), weights(resumed.gan))
        assert straight.masks == resumed.masks
        assert_equal(moments(straight), moments(resumed))
    return straight


# --- Gradual pruning ------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize("make", GANS.values(), ids=GANS)
def test_gradual_pruning_follows_its_schedule(make, network):
    gan, split = make()
    pruning = GradualPruning(network, 0.8, start=2, end=7, every=2)
    watch = Watch(checked_masks)
    run(start(gan, 9), split, pruning, watch)
    assert GradualPruning.order == PRUNE
    total = gp.Mask.dense(gan.networks()[network]).total
    at = {step: cubic(step, start=2, end=7, final=0.8) for step in (2, 4, 6, 7)}
    for step in range(1, 10):
        reached = max((event for event in at if event <= step), default=None)
        wanted = gp.masks.pruned_count(at[reached], total) if reached else 0
        mask = watch.seen[step].get(network)
        assert (mask.pruned if mask is not None else 0) == wanted, step
    found = [seen[network] for seen in watch.seen.values() if network in seen]
    assert all(earlier.covers(later) for earlier, later in zip(found, found[1:], strict=False))
    assert watch.seen[7] == watch.seen[9]
    assert [row["step"] for row in pruning.rows] == [4, 6, 7]
    assert pruning.rows[-1] == {"step": 7, "network": network, "sparsity": found[-1].sparsity}
    assert found[-1].pruned == gp.masks.pruned_count(0.8, total)


def test_gradual_pruning_knows_the_step_not_the_calls():
    gan, _ = mlp()
    state, pruning = start(gan), GradualPruning(sparsity=0.6, start=0, end=8, every=4)
    state.step = 5  # as if steps had been skipped, and with it the pruning at step 4
    for _ in range(3):
        pruning(state)
    assert state.masks["generator"].pruned == gp.masks.pruned_count(
        cubic(4, start=0, end=8, final=0.6), gp.Mask.dense(gan.generator).total
    )
    assert len(pruning.rows) == 1
    state.step = 400
    pruning(state)
    assert state.masks["generator"].sparsity == pytest.approx(0.6, abs=0.01)


def test_before_during_and_after_training():
    def sparsities(pruning):
        gan, split = mlp()
        watch = Watch(lambda state: bool(state.masks))
        state = start(gan, 4)
        pruning.begin(state)
        before = bool(state.masks)
        run(state, split, pruning, watch)
        assert state.masks["generator"].sparsity == pytest.approx(0.5, abs=0.01)
        return [before, *watch.seen.values()]

    one_shot = {"network": "generator", "sparsity": 0.5, "schedule": "one-shot"}
    assert sparsities(GradualPruning(**one_shot)) == [True] * 5
    assert sparsities(GradualPruning(**one_shot, start=2)) == [False, False, True, True, True]
    assert sparsities(GradualPruning(**one_shot, start=4)) == [False, False, False, False, True]


def test_rounds_points_and_functions_are_schedules_too():
    rounds = GradualPruning(sparsity=0.6, schedule="geometric", start=10, every=5)
    assert rounds.end == 35  # 0.8⁵ is the first power below 0.4
    assert [rounds.sparsity_at(s) for s in (0, 9, 10, 15, 19, 20, 35, 99)] == pytest.approx(
        [0, 0, 0, 0.2, 0.2, 0.36, 0.6, 0.6]
    )
    halving = GradualPruning(sparsity=0.75, schedule="geometric", every=2, schedule_options={"keep": 0.5})
    assert (halving.end, halving.sparsity_at(2), halving.sparsity_at(4)) == (4, 0.5, 0.75)
    points = GradualPruning(schedule="piecewise", schedule_options={"points": {3: 0.2, 5: 0.7}})
    assert [points.sparsity_at(s) for s in range(7)] == [0, 0, 0, 0.2, 0.2, 0.7, 0.7]
    own = GradualPruning(schedule=lambda step: min(step, 6) / 10, end=6, every=3)
    assert [own.sparsity_at(s) for s in (0, 2, 3, 5, 6, 7)] == [0, 0, 0.3, 0.3, 0.6, 0.6]
    gan, split = mlp()
    watch = Watch(lambda state: round(state.masks["generator"].sparsity, 2) if state.masks else 0)
    run(start(gan, 7), split, points, watch)
    assert list(watch.seen.values()) == [0, 0, 0.2, 0.2, 0.7, 0.7, 0.7]


def test_any_score_and_allocation_may_drive_it():
    gan, split = mlp("spectral")
    for network, score, options in (
        ("generator", "taylor", {"loss_fn": gp.generator_loss(gan, 1, 4)}),
        ("discriminator", "snip", {"loss_fn": gp.discriminator_loss(gan, split, 1, 4), "allocation": "erk"}),
    ):
        pruning = GradualPruning(network, 0.6, start=0, end=4, every=2, score=score, **options)
        watch = Watch(checked_masks)
        run(start(gan, 4), split, pruning, watch)
        assert watch.seen[2][network].covers(watch.seen[4][network])
        assert watch.seen[4][network].sparsity == pytest.approx(0.6, abs=0.01)


def test_one_step_of_gradual_pruning_is_prune():
    gan, _ = dcgan()
    twin = copy.deepcopy(gan.generator)
    GradualPruning(sparsity=0.7, schedule="one-shot", allocation="lamp").begin(start(gan))
    assert gan.masks["generator"] == gp.prune(twin, 0.7, allocation="lamp")
    assert_equal(dict(gan.generator.named_parameters()), dict(twin.named_parameters()))


def test_gradual_pruning_goes_on_from_the_mask_in_force():
    gan, split = mlp()
    mask = gp.prune(gan.generator, 0.5, protect=["layers.output"])
    pruning = GradualPruning(sparsity=0.8, schedule="one-shot", start=2, score="random")
    state = run(start(gan, 4, {"generator": mask}), split, pruning)
    assert mask.covers(state.masks["generator"])
    assert state.masks["generator"].sparsity == pytest.approx(0.8, abs=0.01)
    denser = GradualPruning(sparsity=0.2, schedule="one-shot")
    denser(state)
    assert denser.rows == []
    with pytest.raises(ValueError, match="protect names layers of the mask in force: layers.linear1.weight"):
        GradualPruning(sparsity=0.9, schedule="one-shot", protect=["layers.linear1"])(state)


@pytest.mark.parametrize(("network", "score"), [("generator", "magnitude"), ("discriminator", "random")])
def test_resumed_gradual_pruning_is_bit_identical(tmp_path, network, score):
    assert_resumes(
        tmp_path,
        mlp,
        lambda gan, split: [GradualPruning(network, 0.8, start=1, end=6, every=2, score=score)],
        range(1, 8),
    )


def test_a_schedule_longer_than_the_run_is_reported():
    gan, split = mlp()
    with pytest.warns(
        UserWarning, match="training ends at step 2, before the schedule of the generator at step 9"
    ):
        run(start(gan, 2), split, GradualPruning(sparsity=0.5, end=9))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"network": "generator_ema"},
            ValueError,
            "network must be one of generator, discriminator, got 'gen",
        ),
        ({"sparsity": 1.0}, ValueError, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": "0.5"}, TypeError, r"sparsity must be a number in \[0, 1\), got '0.5'"),
        ({"sparsity": None}, ValueError, "sparsity must be given for the schedule 'cubic'"),
        ({"schedule": "linear"}, ValueError, "schedule must be one of .* got 'linear'"),
        ({"end": None}, ValueError, "end must be given for the schedule 'cubic', got None"),
        ({"end": 0}, ValueError, "end must be after start"),
        ({"start": -1}, ValueError, "start must be an integer of at least 0, got -1"),
        ({"every": 0}, ValueError, "every must be an integer of at least 1, got 0"),
        ({"every": 2.5}, ValueError, "every must be an integer of at least 1, got 2.5"),
        ({"score": "luck"}, ValueError, "score must be one of .* got 'luck'"),
        ({"score": "movement"}, ValueError, "use MovementPruning with train"),
        ({"score": "taylor"}, ValueError, "score 'taylor' needs loss_fn"),
        ({"score": "wanda"}, ValueError, "score 'wanda' needs inputs"),
        ({"shade": 1}, TypeError, "score 'magnitude' knows no option shade"),
        ({"allocation": "fair"}, ValueError, "allocation must be one of .* got 'fair'"),
        ({"allocation": "2:4"}, ValueError, "allocation '2:4' has one sparsity; prune to it at once"),
        ({"schedule": lambda step: 0.5 if step < 5 else 0.1}, ValueError, "schedule must not fall"),
        ({"schedule": lambda step: 0.4}, ValueError, "must reach the sparsity 0.5 at end 9, it gives 0.4"),
        ({"schedule": "geometric"}, ValueError, "must reach the sparsity 0.5 at end 9, it gives 0.0"),
        ({"schedule": lambda step: 0.5, "end": None}, ValueError, "end must be given"),
        ({"schedule": "piecewise", "end": None}, TypeError, "points"),
    ],
)
def test_wrong_arguments_of_gradual_pruning_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        GradualPruning(**{"sparsity": 0.5, "end": 9, **arguments})


# --- One update -----------------------------------------------------------------------------------


def brute_force_update(weight, kept, fraction, growth):
    """Drop and grow on lists of positions: sorted, one by one."""
    weight, kept, growth = weight.flatten().tolist(), kept.flatten().tolist(), growth.flatten().tolist()
    alive = [i for i, k in enumerate(kept) if k]
    number = int(fraction * len(alive))
    stays = set(alive) - set(sorted(alive, key=lambda i: (abs(weight[i]), i))[:number])
    free = [i for i in range(len(kept)) if i not in stays]
    grown = sorted(free, key=lambda i: (growth[i], i))[len(free) - number :]
    return [i in stays or i in grown for i in range(len(kept))]


layer_shapes = st.lists(
    st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple), min_size=1, max_size=3
)


@given(layer_shapes, st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**20), st.booleans())
@settings(max_examples=40)
def test_updates_equal_brute_force_and_keep_every_count(shapes, density, fraction, seed, coarse):
    generator = torch.Generator().manual_seed(seed)
    keys = [f"layer{i}.weight" for i in range(len(shapes))]
    draw = {key: torch.randn(shape, generator=generator) for key, shape in zip(keys, shapes, strict=True)}
    gradients = {key: torch.randn(value.shape, generator=generator) for key, value in draw.items()}
    if coarse:  # many ties
        draw, gradients = ({k: v.round() for k, v in t.items()} for t in (draw, gradients))
    mask = gp.Mask({k: torch.rand(v.shape, generator=generator) <= density for k, v in draw.items()})
    tensors = {key: value * mask[key] for key, value in draw.items()}
    rigl = rigl_update(tensors, gradients, mask, fraction)
    grown = set_update(tensors, mask, fraction, seed)
    assert counts(rigl) == counts(grown) == counts(mask)
    for key in keys:
        wanted = brute_force_update(tensors[key], mask[key], fraction, gradients[key].abs())
        assert rigl[key].flatten().tolist() == wanted
        # what SET leaves of the old mask is at least what is not dropped
        stays = brute_force_update(tensors[key], mask[key], fraction, mask[key].float() * 0)
        number = int(fraction * int(mask[key].sum()))
        order = sorted(
            mask[key].flatten().nonzero().flatten().tolist(), key=lambda i: abs(tensors[key].flatten()[i])
        )
        safe = [
            i
            for i in order
            if abs(tensors[key].flatten()[i]) > abs(tensors[key].flatten()[order[number - 1]])
        ]
        assert number == 0 or all(grown[key].flatten()[i] for i in safe)
        assert sum(stays) == int(mask[key].sum())
    assert set_update(tensors, mask, fraction, seed) == grown
    assert rigl_update(tensors, gradients, mask, 0.0) == mask == set_update(tensors, mask, 0.0)


def test_a_hand_checked_update():
    weights = {"a.weight": torch.tensor([[4.0, -1.0, 0.0, 0.0], [0.0, -3.0, 0.5, 0.0]])}
    gradients = {"a.weight": torch.tensor([[9.0, 0.0, -7.0, 1.0], [-8.0, 9.0, 0.0, 2.0]])}
    mask = gp.Mask({"a.weight": torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]).bool()})
    moved = rigl_update(weights, gradients, mask, 0.5)  # −1 and 0.5 go; gradients −7 and −8 come
    assert moved["a.weight"].int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]
    gradients["a.weight"][0, 1] = 30.0  # a weight that was just dropped may grow at once
    moved = rigl_update(weights, gradients, mask, 0.5)
    assert moved["a.weight"].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_set_grows_uniformly_at_random():
    weights = {"a.weight": torch.tensor([[5.0, 0.1, 0.0, 0.0, 0.0]])}
    mask = gp.Mask({"a.weight": weights["a.weight"] != 0})
    hits = torch.zeros(5)
    for seed in range(400):
        hits += set_update(weights, mask, 0.5, seed)["a.weight"][0]
    assert hits[0] == 400
    assert (hits[1:] - 100).abs().max() < 40  # 4.6 standard deviations


@pytest.mark.parametrize("update", ["set", "rigl"])
def test_wrong_arguments_of_an_update_are_refused(update):
    weights = {"a.weight": torch.ones(2, 3)}
    mask = gp.Mask({"a.weight": torch.ones(2, 3, dtype=torch.bool)})

    def call(weights=weights, gradients=weights, mask=mask, fraction=0.5):
        if update == "set":
            return set_update(weights, mask, fraction)
        return rigl_update(weights, gradients, mask, fraction)

    for fraction in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], got"):
            call(fraction=fraction)
    with pytest.raises(TypeError, match=r"fraction must be a number in \[0, 1\], got '1'"):
        call(fraction="1")
    with pytest.raises(TypeError, match="mask must be a Mask, got dict"):
        call(mask={})
    with pytest.raises(ValueError, match=r"weights must have the layers and shapes .* not so in a.weight"):
        call(weights={"a.weight": torch.ones(3, 2)})
    with pytest.raises(ValueError, match="weights must be finite, got NaN or infinity in a.weight"):
        call(weights={"a.weight": torch.full((2, 3), math.nan)})
    if update == "rigl":
        with pytest.raises(ValueError, match=r"gradients must have the layers .* not so in a.weight"):
            call(gradients={})
        with pytest.raises(ValueError, match="gradients must be finite, got NaN or infinity in a.weight"):
            call(gradients={"a.weight": torch.full((2, 3), math.inf)})


# --- Dynamic sparse training ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("make", GANS.values(), ids=GANS)
def test_counts_are_constant_and_masks_hold_at_every_step(make, method):
    gan, split = make()
    both = ("generator", "discriminator")
    training = DynamicSparseTraining(
        method, {"generator": 0.7, "discriminator": 0.4}, networks=both, interval=2, end=7, seed=3
    )
    state, watch = start(gan, 9), Watch(checked_masks)
    training.begin(state)
    first = dict(state.masks)
    for network, sparsity in (("generator", 0.7), ("discriminator", 0.4)):
        assert first[network].pruned == gp.masks.pruned_count(sparsity, first[network].total)
        shares = gp.allocate(gp.score(gan.networks()[network], "magnitude"), sparsity, "erk")
        assert counts(first[network]) == counts(shares)
    run(state, split, training, watch)
    assert DynamicSparseTraining.order == PRUNE
    for network in both:
        masks = [first[network], *(seen[network] for seen in watch.seen.values())]
        assert all(counts(mask) == counts(first[network]) for mask in masks)
        changed = [step for step in range(1, 10) if masks[step] != masks[step - 1]]
        rows = [row for row in training.rows if row["network"] == network]
        assert [row["step"] for row in rows] == [2, 4, 6]
        assert [row["step"] for row in rows if row["moved"]] == changed
        assert 2 in changed
    row = training.rows[0]
    assert row["fraction"] == pytest.approx(0.15 * (1 + math.cos(math.pi * 2 / 7)))
    assert row["kept"] == first["generator"].kept
    assert 0 < row["moved"] <= row["fraction"] * row["kept"]


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize("norm", ["none", "spectral"])
@pytest.mark.parametrize("critic_steps", [1, 2])
def test_rigl_in_the_loop_is_the_update_on_the_gradients_of_that_step(network, norm, critic_steps):
    gan, split = mlp(norm)
    slots, dense, before, modes = weight_slots(gan.networks()[network]), {}, {}, {}
    for key, slot in slots.items():  # registered first, so these see what autograd made of every pass

        def record(parameter, key=key):
            dense[key] = parameter.grad.clone()

        slot.raw.register_post_accumulate_grad_hook(record)
    state = start(gan, 7, critic_steps=critic_steps)
    training = DynamicSparseTraining("rigl", 0.6, networks=network, interval=3, end=100)

    def look(state):
        modes[state.step] = state.keepers[network].gradients
        if state.step in (3, 6):
            effective = {key: slot.effective().clone() for key, slot in slots.items()}
            before[state.step] = (effective, dict(dense), state.masks[network])

    watch = Watch(checked_masks)
    run(state, split, Watch(look, order=-1), training, watch)
    for step in (3, 6):
        effective, gradients, mask = before[step]
        assert any(gradients[key][~kept].abs().sum() > 0 for key, kept in mask.items())
        for key, kept in mask.items():
            wanted = brute_force_update(
                effective[key], kept, training.fraction_at(step, 100), gradients[key].abs()
            )
            assert watch.seen[step][network][key].flatten().tolist() == wanted
    assert modes == {step: "dense" if step in (3, 6) else "masked" for step in range(1, 8)}


def test_the_weaker_of_two_equal_raw_weights_goes_under_weight_norm():
    torch.manual_seed(0)
    discriminator = nn.Sequential(
        weight_norm(nn.Linear(3, 4)), nn.LeakyReLU(0.2), nn.Linear(4, 1), nn.Flatten(0)
    )
    gan = gp.networks.GAN(mlp()[0].generator, discriminator)
    with torch.no_grad():
        discriminator[0].parametrizations.weight.original0[0] = 1e-3  # the first output is hardly used
    mask = gp.Mask.dense(discriminator, protect=["2"])
    state = start(gan, 2, {"discriminator": mask}, learning_rate=1e-6)
    training = DynamicSparseTraining("set", networks="discriminator", interval=1, end=2, fraction=0.5)
    training.begin(state)
    dropped = []
    before = Watch(lambda state: weight_slots(discriminator)["0.weight"].effective().abs(), order=-1)
    update = regrowth.keep_largest

    def spy(scores, keep):
        dropped.append(scores.clone())
        return update(scores, keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regrowth, "keep_largest", spy)
        gp.train(state, POINTS, [before, training])
    assert torch.equal(dropped[0], before.seen[1].flatten())
    assert dropped[0][:3].max() < dropped[0][3:].min()


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize("new_values", ["zero", "random"])
@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_what_regrows_starts_without_moments(method, new_values, network):
    gan, split = dcgan()
    training = DynamicSparseTraining(
        method, 0.6, networks=network, interval=3, end=9, fraction=0.5, new_values=new_values
    )
    slots = weight_slots(gan.networks()[network])

    def look(state):
        optimizer = state.optimizers[network]
        return {
            key: (
                state.masks[network][key],
                slot.raw.detach().clone(),
                optimizer.state[slot.raw]["exp_avg"].clone(),
                optimizer.state[slot.raw]["exp_avg_sq"].clone(),
            )
            for key, slot in slots.items()
        }

    before, after = Watch(look, order=-1), Watch(look)
    state = run(start(gan, 4), split, before, training, after)
    moved = 0
    for key, (new, raw, first, second) in after.seen[3].items():
        old, raw_before, first_before, second_before = before.seen[3][key]
        regrown, stayed = new & ~old, new & old
        moved += int(regrown.sum())
        assert first[regrown].abs().sum() == second[regrown].abs().sum() == 0
        assert torch.equal(raw[stayed], raw_before[stayed])
        assert torch.equal(first[stayed], first_before[stayed])
        assert torch.equal(second[stayed], second_before[stayed])
        assert bool((raw[~new] == 0).all())
        assert bool((raw[regrown] != 0).all()) is (new_values == "random") or not regrown.any()
        if new_values == "random" and int(regrown.sum()) > 100:
            assert float(raw[regrown].std()) == pytest.approx(float(raw_before[old].std()), rel=0.3)
    assert moved == training.rows[0]["moved"] > 0
    if network == "discriminator":  # the power iteration has seen the new weights
        for slot in slots.values():
            matrix = slot.effective().flatten(1)
            assert torch.linalg.matrix_norm(matrix, 2) == pytest.approx(1, abs=0.15)
    state.keepers[network].check()


@pytest.mark.parametrize("method", ["rigl", "set"])
@pytest.mark.parametrize(
    ("make", "network"),
    [
        (dcgan, "generator"),
        (dcgan, "discriminator"),
        (mlp, "discriminator"),
        (lambda: mlp("spectral"), "discriminator"),
    ],
)
def test_resumed_dynamic_sparse_training_is_bit_identical(tmp_path, method, make, network):
    stops = range(1, 8) if make is mlp else (1, 2)
    straight = assert_resumes(
        tmp_path,
        make,
        lambda gan, split: [
            DynamicSparseTraining(
                method,
                0.7,
                networks=network,
                interval=2,
                end=7,
                new_values="random" if method == "set" else "zero",
            )
        ],
        stops,
    )
    assert straight.masks[network].sparsity == pytest.approx(0.7, abs=0.02)


def test_growing_by_gradients_that_were_masked_is_refused():
    gan, split = mlp()
    mask = gp.prune(gan.generator, 0.5)
    training = DynamicSparseTraining("rigl", interval=1, end=9)
    with pytest.raises(gp.MaskError, match="the gradients of step 1 were masked.* call begin"):
        gp.train(start(gan, 3, {"generator": mask}), split, [lambda state: training(state)])
    with pytest.raises(gp.MaskError, match="no mask is in force for the generator; call begin"):
        training(start(mlp()[0]))
    state = start(mlp()[0], 3, {"generator": mask})
    training.begin(state)
    state.step = 1
    with pytest.raises(
        gp.MaskError, match="the generator has no gradient to grow by in layers.linear1.weight"
    ):
        training(state)


def test_the_first_mask_is_the_one_in_force():
    gan, split = mlp()
    mask = gp.prune(gan.generator, 0.5, allocation="uniform")
    state = start(gan, 4, {"generator": mask})
    with pytest.raises(ValueError, match="must be that of its mask in force, 0.5.*, got 0.9"):
        DynamicSparseTraining("set", 0.9).begin(state)
    training = DynamicSparseTraining("set", 0.5, interval=1, fraction=1.0, decay="constant")
    run(state, split, training)
    assert counts(state.masks["generator"]) == counts(mask)
    assert [row["step"] for row in training.rows] == [
        1,
        2,
    ]  # 75% of four steps is step 3, and that is too late
    assert [row["fraction"] for row in training.rows] == [1.0, 1.0]
    with pytest.raises(ValueError, match="sparsity must be given for the discriminator, which has no mask"):
        DynamicSparseTraining("set", networks=("generator", "discriminator")).begin(state)
    named = DynamicSparseTraining(
        "set", {"discriminator": 0.5}, networks="discriminator", protect={"discriminator": ["layers.output"]}
    )
    named.begin(state)
    assert set(state.masks["discriminator"]) == {"layers.linear1.weight", "layers.linear2.weight"}


def test_an_update_that_a_norm_refuses_changes_nothing():
    torch.manual_seed(0)
    discriminator = nn.Sequential(
        weight_norm(nn.Linear(3, 40)), nn.LeakyReLU(0.2), nn.Linear(40, 1), nn.Flatten(0)
    )
    gan = gp.networks.GAN(mlp()[0].generator, discriminator)
    kept = torch.zeros(40, 3, dtype=torch.bool)
    kept[:, 0] = True  # one weight per output: any move empties one
    state = start(gan, 3, {"discriminator": gp.Mask({"0.weight": kept})})
    training = DynamicSparseTraining(
        "set", networks="discriminator", interval=1, end=9, fraction=0.5, new_values="random"
    )
    before = Watch(lambda state: weights(gan), order=-1)
    with pytest.raises(ValueError, match="mask empties what a norm divides by"):
        run(state, POINTS, before, training)
    assert_equal(before.seen[1], weights(gan))
    state.keepers["discriminator"].check()


def test_a_loop_of_ones_own():
    gan, _ = mlp()
    model = gan.generator
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    mask = gp.prune(model, 0.6, score="random", allocation="erk")
    with gp.keep_mask(model, mask, optimizer) as keeper:
        for step in range(1, 7):
            keeper.gradients = "dense" if step % 3 == 0 else "masked"
            optimizer.zero_grad()
            model(gp.sample_latents(8, 4, step)).square().mean().backward()
            optimizer.step()
            if step % 3 == 0:
                gradients = {key: weight.grad for key, weight in gp.prunable_weights(model).items()}
                keeper.update(rigl_update(effective_weights(model), gradients, keeper.mask, 0.3))
        assert keeper.mask != mask
        assert counts(keeper.mask) == counts(mask)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "rig"}, ValueError, "method must be one of rigl, set, got 'rig'"),
        ({"networks": ()}, ValueError, "networks must name generator or discriminator, got none"),
        ({"networks": "generator_ema"}, ValueError, "networks must be one of .* got 'generator_ema'"),
        ({"sparsity": 1}, ValueError, r"sparsity of the generator must be in \[0, 1\), got 1"),
        ({"sparsity": "high"}, TypeError, "sparsity of the generator must be a number"),
        ({"sparsity": {"discriminator": 0.5}}, ValueError, "given for discriminator, which is not among"),
        ({"allocation": "lamp"}, ValueError, "allocation must be one of erk, uniform, global, got 'lamp'"),
        ({"fraction": 0}, ValueError, "fraction must be above 0, got 0"),
        ({"fraction": 1.1}, ValueError, r"fraction must be in \[0, 1\], got 1.1"),
        ({"fraction": None}, TypeError, "fraction must be a number"),
        ({"interval": 0}, ValueError, "interval must be an integer of at least 1, got 0"),
        ({"end": 0}, ValueError, "end must be an integer of at least 1, got 0"),
        ({"decay": "linear"}, ValueError, "decay must be one of cosine, constant, got 'linear'"),
        ({"new_values": "big"}, ValueError, "new_values must be one of zero, random, got 'big'"),
    ],
)
def test_wrong_arguments_of_dynamic_sparse_training_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        DynamicSparseTraining(**arguments)


# --- Balance --------------------------------------------------------------------------------------


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
            parameter.add_(0.05 * torch.randn(parameter.shape))
    real, z = split.batch(16, 0, 0), gp.sample_latents(16, gp.networks.latent_dim_of(gan.generator), 1)
    kept, noise = weights(gan), torch.get_rng_state()
    earlier = balance._tensors(before)
    copies = {name: tensor.clone() for name, tensor in earlier.items()}
    gan.generator.train(), gan.discriminator.train(), before.train()
    ratio, lead = balance_ratio(gan.generator, gan.discriminator, earlier, real, z)
    assert_equal(kept, weights(gan))
    assert_equal(copies, earlier)
    assert torch.equal(noise, torch.get_rng_state())
    by_hand = ratio_by_hand(gan.generator, gan.discriminator, before, real, z)
    if lead > 0:
        assert ratio == pytest.approx(by_hand, rel=1e-3)
    else:
        assert ratio is None


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


@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("make", GANS.values(), ids=GANS)
def test_the_density_follows_the_balance_ratio(make, grow):
    gan, split = make()
    options = {"interval": 2, "increment": 0.1, "bounds": (0.3, 0.75), "grow": grow, "samples": 8}
    weak = BalanceController(split, band=(-1e9, -1e8), density=0.5, **options)
    watch, earlier = Watch(checked_masks), Watch(lambda state: copy.deepcopy(gan.generator))
    dense_at = Watch(lambda state: state.keepers["discriminator"].gradients)
    state = start(gan, 8, learning_rate=1e-3)
    run(state, split, weak, watch, earlier, dense_at)
    assert BalanceController.order == PRUNE
    assert {row["step"] for row in weak.rows} == {2, 4, 6, 8}
    grown = [seen["discriminator"] for seen in watch.seen.values()]
    assert all(later.covers(sooner) for sooner, later in zip(grown, grown[1:], strict=False))
    assert list(dense_at.seen.values()) == (["dense", "masked"] * 4 if grow == "gradient" else ["masked"] * 8)
    density = 0.5
    for row in weak.rows:
        if row["balance_ratio"] is None:
            assert row["action"] == "skipped: the discriminator does not tell real from generated samples"
            assert row["lead"] <= 0
            continue
        assert row["action"] == ("grown" if density < 0.74 else "at bound")
        density = min(0.75, density + 0.1)
        assert row["density"] == pytest.approx(density, abs=0.02)
    strong = BalanceController(split, band=(1e8, 1e9), **options)
    state.config = gp.TrainConfig(**{**vars(state.config), "steps": 16})
    watch.seen.clear()
    run(state, split, strong, watch)
    shrunk = [seen["discriminator"] for seen in watch.seen.values()]
    assert all(sooner.covers(later) for sooner, later in zip(shrunk, shrunk[1:], strict=False))
    assert {"grown"}.isdisjoint(row["action"] for row in strong.rows)
    assert any(row["action"] in ("grown", "shrunk") for row in weak.rows + strong.rows)


def test_before_and_after_are_one_update_apart():
    gan, split = mlp()
    controller = BalanceController(split, band=(-1e9, 1e9), interval=3, samples=16, seed=5)
    generators = Watch(lambda state: copy.deepcopy(gan.generator))
    critics = Watch(lambda state: copy.deepcopy(gan.discriminator))
    run(start(gan, 6, learning_rate=1e-2), split, controller, generators, critics)
    assert gan.masks["discriminator"].density == 1
    assert [row["step"] for row in controller.rows] == [3, 6]
    for row in controller.rows:
        step, draw = row["step"], gp.step_seed(5, row["step"], "balance")
        real, z = split.batch(16, draw, 0), gp.sample_latents(16, 4, draw)
        by_hand = ratio_by_hand(generators.seen[step], critics.seen[step], generators.seen[step - 1], real, z)
        assert row["action"] == ("in band" if row["lead"] > 0 else controller.rows[0]["action"])
        if row["lead"] > 0:
            assert row["balance_ratio"] == pytest.approx(by_hand, rel=1e-3)
    assert any(row["lead"] > 0 for row in controller.rows)


def test_a_discriminator_that_tells_nothing_apart_is_skipped():
    gan, split = mlp()

    def blind(state):
        gan.discriminator.layers.output.weight.data.zero_()

    blind.order = -1
    controller = BalanceController(split, band=(5, 6), interval=1, density=0.5)
    state = run(start(gan, 2), split, blind, controller)
    assert [(row["balance_ratio"], row["lead"]) for row in controller.rows] == [(None, 0.0)] * 2
    assert all(row["action"].startswith("skipped") for row in controller.rows)
    assert state.masks["discriminator"].density == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("band", [(-1e9, -1e8), (1e8, 1e9)])
def test_a_resumed_controller_is_bit_identical(tmp_path, band):
    rows = []

    def callbacks(gan, split):
        controller = BalanceController(
            split, band=band, interval=2, density=0.5, increment=0.1, samples=16, bounds=(0.2, 0.9)
        )
        rows.append(controller.rows)
        return [DynamicSparseTraining("rigl", 0.5, networks="generator", interval=3, end=99), controller]

    straight = assert_resumes(tmp_path, mlp, callbacks, range(1, 8), learning_rate=1e-2)
    for number, stop in enumerate(range(1, 8)):
        _, resumed = rows[1 + 2 * number : 3 + 2 * number]
        assert resumed == [row for row in rows[0] if row["step"] > stop]
    assert straight.masks["discriminator"].density != pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("first", ["training", "controller"])
@pytest.mark.parametrize(("interval", "other"), [(2, 2), (2, 3), (1, 1)])
def test_callbacks_that_grow_by_gradient_share_a_network(first, interval, other):
    gan, split = mlp()
    training = DynamicSparseTraining("rigl", 0.5, networks="discriminator", interval=interval, end=99)
    controller = BalanceController(split, band=(-1e9, -1e8), interval=other, increment=0.02, density=0.5)
    pruning = GradualPruning("generator", 0.5, end=6, every=1)
    modes = Watch(lambda state: state.keepers["discriminator"].gradients)
    callbacks = [training, controller] if first == "training" else [controller, training]
    run(start(gan, 6, learning_rate=1e-2), split, pruning, *callbacks, Watch(checked_masks), modes)
    assert [row["step"] for row in training.rows] == list(range(interval, 7, interval))
    assert [row["step"] for row in controller.rows] == list(range(other, 7, other))
    for step, mode in modes.seen.items():
        due = (step + 1) % interval == 0 or (step + 1) % other == 0
        assert mode == ("dense" if due else "masked"), step


def test_a_new_mask_leaves_the_gradients_to_the_next_callback():
    gan, _ = mlp()
    state = start(gan, 3, {"generator": gp.prune(gan.generator, 0.5)})
    dense = torch.ones_like(gan.generator.layers.output.weight)
    gan.generator.layers.output.weight.grad = dense.clone()
    common.set_mask(state, "generator", state.masks["generator"].shuffled(1))
    assert torch.equal(gan.generator.layers.output.weight.grad, dense)
    assert state.keepers["generator"].gradients == "masked"


@given(layer_shapes, st.integers(0, 2**20), st.sampled_from(["erk", "uniform", "global"]))
@settings(max_examples=40)
def test_growth_keeps_what_is_kept_and_meets_its_number(shapes, seed, allocation):
    generator = torch.Generator().manual_seed(seed)
    scores = {f"layer{i}.weight": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    mask = gp.Mask({k: torch.rand(v.shape, generator=generator) < 0.5 for k, v in scores.items()})
    for keep in {mask.kept, (mask.kept + mask.total) // 2, mask.total}:
        grown = balance._grow(mask, scores, keep, allocation)
        assert grown.kept == keep
        assert grown.covers(mask)
        for key, kept in mask.items():  # within a layer the best-scored come first
            new, out = grown[key] & ~kept, ~grown[key]
            if new.any() and out.any():
                assert scores[key][new].min() >= scores[key][out].max()
    fewer, more = mask.total // 3, mask.total // 2
    if fewer and allocation != "global":
        start = gp.allocate(scores, 1 - fewer / mask.total, allocation)
        goal = gp.allocate(scores, 1 - more / mask.total, allocation)
        assert counts(balance._grow(start, scores, goal.kept, allocation)) == counts(goal)


def test_a_controller_that_was_not_begun_says_so():
    gan, split = mlp()
    with pytest.raises(gp.MaskError, match="no mask is in force for the discriminator; call begin"):
        BalanceController(split)(start(gan))
    state = start(gan, 2, {"discriminator": gp.Mask.dense(gan.discriminator)})
    control = BalanceController(split, interval=1)
    with pytest.raises(gp.MaskError, match="the generator as it was before step 1 is not known: call begin"):
        gp.train(state, split, [lambda state: control(state)])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": [1]}, TypeError, "split must have a method batch"),
        ({"band": 0.5}, TypeError, r"band must be \(lower, upper\), got 0.5"),
        ({"band": (0.5, 0.4)}, ValueError, r"band must be \(lower, upper\) with lower < upper"),
        ({"band": (0.5, math.nan)}, ValueError, "band must be in"),
        ({"increment": 0}, ValueError, "increment must be above 0, got 0"),
        ({"increment": 2}, ValueError, r"increment must be in \[0, 1\], got 2"),
        ({"bounds": (0, 1)}, ValueError, "bounds must be above 0"),
        ({"bounds": (0.5, 1.5)}, ValueError, r"bounds must be in \[0, 1\], got 1.5"),
        ({"density": 0.01}, ValueError, r"density must be in \[0.05, 1.0\], got 0.01"),
        ({"interval": 0}, ValueError, "interval must be an integer of at least 1, got 0"),
        ({"samples": 0}, ValueError, "samples must be an integer of at least 1, got 0"),
        ({"grow": "magnitude"}, ValueError, "grow must be one of gradient, random, got 'magnitude'"),
        ({"allocation": "lamp"}, ValueError, "allocation must be one of erk, uniform, global, got 'lamp'"),
        ({"end": 0}, ValueError, "end must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_arguments_of_the_controller_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        BalanceController(**{"split": POINTS, **arguments})
