"""Callbacks that change masks during training: what all of them promise, and gradual pruning."""

import math

import pytest
import torch
from tools.changing_masks import GANS, POINTS, Watch, check_resuming, checked_masks, mlp, train
from tools.small_gans import config, equal, hooks_on, small_gan, weights

import ganprune as gp
from ganprune.dynamic import (
    BalanceController,
    DynamicSparseTraining,
    Geometric,
    GradualPruning,
    MovementPruning,
    OneShot,
    Piecewise,
    Schedule,
)
from ganprune.masks import pruned_count
from ganprune.training.callbacks import PRUNE

CUBIC = gp.Cubic(0.8, start=1, end=6)
KINDS = {
    "gradual": lambda network, split: GradualPruning(CUBIC, every=2, network=network),
    "gradual, random": lambda network, split: GradualPruning(
        Geometric(0.8, every=2, keep=0.5), "random", network=network
    ),
    "movement": lambda network, split: MovementPruning(CUBIC, every=2, network=network),
    "rigl": lambda network, split: DynamicSparseTraining("rigl", 0.7, network=network, every=2, end=7),
    "set": lambda network, split: DynamicSparseTraining(
        "set", 0.7, network=network, every=2, end=7, new_values="random"
    ),
    "balance": lambda network, split: BalanceController(
        split, band=(-1e9, -1e8), every=2, density=0.5, samples=16, bounds=(0.2, 0.9), increment=0.1
    ),
}
CASES = [
    (kind, network)
    for kind in KINDS
    for network in ("generator", "discriminator")
    if (kind, network) != ("balance", "generator")
]


def start(gan, steps=8, **changes):
    return gp.TrainState(gan, config(steps=steps, batch_size=4, **changes))


@pytest.mark.parametrize(("kind", "network"), CASES)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, kind, network):
    state = check_resuming(
        tmp_path, mlp, lambda split: [KINDS[kind](network, split)], (1, 4, 5), learning_rate=1e-2
    )
    assert state.masks[network].pruned
    assert len(state.rows[KINDS[kind](network, POINTS).name or "BalanceController"]) >= 3


@pytest.mark.parametrize(("kind", "network"), CASES)
@pytest.mark.parametrize("make", GANS.values(), ids=GANS)
def test_masks_hold_after_every_step_and_nothing_stays_behind(make, kind, network):
    seen = Watch(checked_masks)
    state = train(make, lambda split: [KINDS[kind](network, split), seen])
    assert seen.seen[8] == state.masks
    assert len({tuple(sorted(mask)) for masks in seen.seen.values() for mask in masks.values()}) == 1
    state.gan.masks.check()
    assert hooks_on(state.gan) == 0
    for optimizer in state.optimizers.values():
        assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize(("kind", "network"), CASES)
def test_a_stopped_training_lets_go_and_the_same_callback_goes_on(kind, network):
    (gan, split), (other, _) = mlp(), mlp()
    state, straight = start(gan), start(other)
    gp.train(straight, split, [KINDS[kind](network, split)])
    callback = KINDS[kind](network, split)

    def interrupt(state):
        if state.step == 4:
            raise KeyboardInterrupt

    gp.train(state, split, [callback], until=2)
    with pytest.raises(KeyboardInterrupt):
        gp.train(state, split, [callback, interrupt])
    assert hooks_on(gan) == 0
    gp.train(state, split, [callback])
    assert equal(weights(gan), weights(other))
    assert state.rows == straight.rows


@pytest.mark.parametrize(("kind", "network"), CASES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_network_is_told_from_a_wrong_argument(kind, network, value):
    """Between two looks at the losses a callback is the first to meet a weight that is not finite."""
    gan, split = mlp()

    def poison(state):
        if state.step == 2:
            next(state.gan.networks()[network].parameters()).data.view(-1)[-1] = value

    poison.order = PRUNE - 1
    with pytest.raises(gp.training.DivergenceError, match="training diverged by step [2-4]"):
        gp.train(start(gan, log_every=50), split, [poison, KINDS[kind](network, split)])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("norm", ["none", "spectral"])
@pytest.mark.parametrize("kind", [kind for kind, network in CASES if network == "discriminator"])
def test_a_rate_that_is_far_too_large_is_a_divergence(kind, norm, optimizer):
    changes = {"learning_rate": 1e30, "optimizer": optimizer, "log_every": 50}
    with pytest.raises(gp.training.DivergenceError, match="lower learning_rate"):
        train(lambda: mlp(norm), lambda split: [KINDS[kind]("discriminator", split)], **changes)


def test_callbacks_share_a_network_and_a_step():
    rigl = {"network": "discriminator", "every": 2, "end": 7}
    for direction in (1, -1):
        gan, split = mlp()
        gp.prune(gan, 0.5, which="discriminator")
        both = [DynamicSparseTraining("rigl", **rigl), KINDS["balance"]("", split)]
        callbacks = [GradualPruning(CUBIC, every=1), *both[::direction], Watch(checked_masks)]
        gp.train(start(gan, learning_rate=1e-2), split, callbacks)
        assert [[row["step"] for row in callback.rows] for callback in both] == [[2, 4, 6], [2, 4, 6, 8]]


def test_both_networks_may_be_pruned_in_one_run():
    state = train(
        mlp, lambda split: [GradualPruning(CUBIC, network=n) for n in ("generator", "discriminator")]
    )
    assert [round(mask.sparsity, 1) for mask in state.masks.values()] == [0.8, 0.8]


# --- Gradual pruning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize("make", GANS.values(), ids=GANS)
def test_gradual_pruning_follows_its_schedule(make, network):
    schedule, seen = gp.Cubic(0.8, start=2, end=7), Watch(checked_masks)
    state = train(
        make, lambda split: [GradualPruning(schedule, every=2, network=network), seen], 9, log_every=50
    )
    total = gp.Mask.dense(state.gan.networks()[network]).total
    events = {0: 0.0, **{step: schedule(step) for step in (2, 4, 6, 7)}}
    for step, masks in seen.seen.items():
        wanted = pruned_count(events[max(event for event in events if event <= step)], total)
        assert (masks[network].pruned if network in masks else 0) == wanted, step
    found = [masks[network] for masks in seen.seen.values() if network in masks]
    assert all(before.covers(after) for before, after in zip(found, found[1:], strict=False))
    rows = state.rows[f"GradualPruning/{network}"]
    assert [row["step"] for row in rows] == [4, 6, 7]
    assert rows[-1] == {"step": 7, "network": network, "sparsity": state.masks[network].sparsity}


@pytest.mark.parametrize(
    ("schedule", "sparsities"),
    [
        (OneShot(0.5), [0.5] * 6),
        (OneShot(0.5, start=2), [0, 0.5, 0.5, 0.5, 0.5, 0.5]),
        (OneShot(0.5, start=6), [0, 0, 0, 0, 0, 0.5]),
        (Geometric(0.6, start=1, every=2, keep=0.5), [0, 0, 0.5, 0.5, 0.6, 0.6]),
        (Geometric(0.36, every=3), [0, 0, 0.2, 0.2, 0.2, 0.36]),
        (Piecewise({0: 0.2, 3: 0.4, 5: 0.7}), [0.2, 0.2, 0.4, 0.4, 0.7, 0.7]),
    ],
    ids=repr,
)
def test_it_prunes_where_the_schedule_changes(schedule, sparsities):
    seen = Watch(lambda state: state.masks["generator"].sparsity if state.masks else 0)
    train(mlp, lambda split: [GradualPruning(schedule), seen], 6)
    assert list(seen.seen.values()) == pytest.approx(sparsities, abs=0.01)


def test_a_schedule_of_ones_own():
    class Linear(Schedule):
        sparsity, start, end = 0.6, 0, 6

        def __call__(self, step):
            return min(step, 6) / 10

    pruning = GradualPruning(Linear(), every=3)
    assert [pruning.sparsity_at(step) for step in (0, 2, 3, 5, 6, 7)] == [0, 0, 0.3, 0.3, 0.6, 0.6]


def test_it_knows_the_step_not_the_calls():
    state, pruning = start(small_gan(), 400), GradualPruning(gp.Cubic(0.6, end=8), every=4)
    state.step = 5  # as if steps had been skipped, and with them the pruning at step 4
    for _ in range(3):
        pruning(state)
    assert [row["sparsity"] for row in pruning.rows] == pytest.approx([gp.Cubic(0.6, end=8)(4)], abs=0.01)
    state.step = 400
    pruning(state)
    assert state.masks["generator"].sparsity == pytest.approx(0.6, abs=0.01)


def test_one_shot_pruning_is_prune():
    (gan, _), (twin, _) = GANS["dcgan"](), GANS["dcgan"]()
    GradualPruning(OneShot(0.7), allocation="lamp").begin(start(gan))
    assert gan.masks["generator"] == gp.prune(twin, 0.7, allocation="lamp")
    assert equal(weights(gan), weights(twin))


@pytest.mark.parametrize(
    ("network", "score", "make_data"),
    [
        ("generator", "taylor", lambda gan, split: {}),
        ("generator", "wanda", lambda gan, split: {"inputs": gp.sample_latents(8, 3, 0)}),
        (
            "discriminator",
            "snip",
            lambda gan, split: {
                "loss_fn": gp.losses.discriminator_loss(gan, split, 1, 4),
                "allocation": "erk",
            },
        ),
    ],
)
def test_any_score_and_allocation_may_drive_it(network, score, make_data):
    gan, split = mlp("spectral")
    pruning = GradualPruning(CUBIC, score, every=2, network=network, **make_data(gan, split))
    seen = Watch(checked_masks)
    gp.train(start(gan), split, [pruning, seen])
    assert seen.seen[4][network].covers(seen.seen[6][network])
    assert seen.seen[8][network].sparsity == pytest.approx(0.8, abs=0.02)


def test_it_goes_on_from_the_mask_in_force():
    gan, split = mlp()
    mask = gp.prune(gan, 0.5, protect=["layers.output"])
    state = gp.train(start(gan, 4), split, [GradualPruning(OneShot(0.8, start=2), "random")])
    assert mask.covers(state.masks["generator"])
    assert state.masks["generator"].sparsity == pytest.approx(0.8, abs=0.01)
    denser = GradualPruning(OneShot(0.2))
    denser(state)
    assert denser.rows == []
    with pytest.raises(ValueError, match=r"protect names layers that are pruned already: layers.linear1"):
        GradualPruning(OneShot(0.9), protect=["layers.linear1"])(state)


def test_a_schedule_longer_than_the_run_is_refused_before_it():
    gan, split = mlp()
    before = weights(gan)
    with pytest.raises(ValueError, match="schedule must end by the last step of the run, 2, got Cubic"):
        gp.train(start(gan, 2), split, [GradualPruning(gp.Cubic(0.5, end=9))])
    assert equal(before, weights(gan))


class Falling(Schedule):
    """A schedule that falls."""

    sparsity, start, end = 0.1, 0, 9

    def __call__(self, step):
        """Return less and less."""
        return 0.5 if step < 5 else 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ({"schedule": 0.9}, TypeError, "schedule must be a schedule such as gp.Cubic"),
        ({"schedule": Falling(), "every": 3}, ValueError, "schedule must not fall"),
        ({"network": "generator_ema"}, ValueError, "network"),
        ({"every": 0}, ValueError, "every"),
        ({"every": 2.5}, ValueError, "every"),
        ({"schedule": OneShot(0.5), "every": 5}, ValueError, "every is not used by OneShot"),
        ({"score": "luck"}, ValueError, "score"),
        ({"score": "movement"}, ValueError, "score 'movement' .*MovementPruning"),
        ({"score": "taylor", "network": "discriminator"}, ValueError, "loss_fn"),
        ({"score": "wanda"}, ValueError, "inputs"),
        ({"allocation": "fair"}, ValueError, "allocation"),
        ({"allocation": "2:4"}, ValueError, "allocation '2:4' has one sparsity"),
        ({"seed": "x"}, ValueError, "seed"),
    ],
)
def test_wrong_arguments_of_gradual_pruning_are_refused(arguments, error, argument):
    with pytest.raises(error, match=f"^{argument}"):
        GradualPruning(**{"schedule": gp.Cubic(0.5, end=9), **arguments})


def test_random_layers_do_not_disturb_a_run_that_goes_on():
    """With dropout in the discriminator, whatever the global random state is."""

    def make():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(2, 8), torch.nn.LeakyReLU(0.2), torch.nn.Dropout(0.5)]
        discriminator = torch.nn.Sequential(*layers, torch.nn.Linear(8, 1), torch.nn.Flatten(0))
        return start(gp.GAN(small_gan().generator, discriminator))

    straight, stopped = make(), make()
    for state, stops in ((straight, [8]), (stopped, [3, 8])):
        for stop in stops:
            torch.manual_seed(stop)
            callbacks = [KINDS[kind]("discriminator", POINTS) for kind in ("rigl", "balance")]
            gp.train(state, POINTS, callbacks, until=stop)
    assert equal(weights(straight.gan), weights(stopped.gan))
    assert straight.rows == stopped.rows
