"""Movement pruning: against Sanh et al.'s update written out by hand, in a loop of one's own and in training."""

import pytest
import torch
from tools.changing_masks import Watch, checked_masks, dcgan, everything, mlp, train
from tools.small_gans import config, equal, hooks_on
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

import ganprune as gp
from ganprune.dynamic import GradualPruning, MovementPruning, MovementScores, OneShot, Piecewise
from ganprune.masks import pruned_count, weight_slots


def start(gan, steps=8, **changes):
    return gp.TrainState(gan, config(steps=steps, batch_size=4, **changes))


def constant(sparsity, end, start=0):
    return Piecewise(((start, sparsity), (end, sparsity)))


# --- The scores, in a loop of one's own -------------------------------------------------------------------


def smooth_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(count):
    generator = gp.seeded(0)
    return [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def the_loss(output, x):
    return (output.square().sum(1) * (1 + x[:, 0])).mean()


def step(network, optimizer, x):
    optimizer.zero_grad()
    the_loss(network(x), x).backward()
    optimizer.step()


def test_scores_are_the_sum_of_minus_rate_times_gradient_times_weight():
    """Plain tensors, plain SGD: S ← S − lr · ∂L/∂W′ · W and W ← W − lr · ∂L/∂W′ · M with W′ = W M."""
    network, rate, sparsity = smooth_network(), 0.1, 0.5
    values = {key: p.detach().clone() for key, p in network.named_parameters()}
    bound = list(gp.prunable_weights(network))
    sums = {key: torch.zeros_like(values[key]) for key in bound}
    kept = {key: torch.ones_like(values[key], dtype=torch.bool) for key in bound}
    for x in batches(6):
        leaves = {k: (v * kept[k] if k in kept else v).requires_grad_(True) for k, v in values.items()}
        loss = the_loss(functional_call(network, leaves, (x,)), x)
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for key in bound:
            sums[key] -= rate * gradients[key] * values[key]
        for key, gradient in gradients.items():
            values[key] = (values[key] - rate * gradient * kept.get(key, 1)).detach()
        for key in bound:
            order = sums[key].flatten().argsort(stable=True)
            kept[key] = torch.ones_like(kept[key])
            kept[key].view(-1)[order[: sums[key].numel() // 2]] = False
    optimizer = torch.optim.SGD(network.parameters(), rate)
    with gp.keep_mask(network, gp.Mask.dense(network), optimizer) as keeper:
        movement = MovementScores(keeper)
        for x in batches(6):
            step(network, optimizer, x)
            assert movement.choose(sparsity) == keeper.mask
            keeper.check()
        movement.remove()
    for key, total in movement.scores.items():
        assert torch.allclose(total, sums[key], rtol=1e-10)
        assert torch.equal(keeper.mask[key], kept[key])
        assert torch.allclose(network.state_dict()[key], values[key] * kept[key], rtol=1e-10)


def test_a_weight_that_shrinks_goes_and_one_that_grows_stays():
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[1.0, 0.1]])
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with gp.keep_mask(network, gp.Mask.dense(network), optimizer) as keeper:
        movement = MovementScores(keeper)
        network(torch.tensor([[1.0, -1.0]])).sum().backward()  # the first is pushed down, the second up
        optimizer.step()
        assert movement.choose(0.5)["weight"].tolist() == [[False, True]]  # magnitude would keep the first


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_a_pruned_weight_comes_back_with_the_value_that_it_last_had(kind):
    torch.manual_seed(1)
    network = nn.Linear(6, 6)
    optimizer = kind(network.parameters(), 0.05)
    back = 0
    with gp.keep_mask(network, gp.Mask.dense(network), optimizer) as keeper:
        movement = MovementScores(keeper)
        last = network.weight.detach().clone()
        for _ in range(30):
            optimizer.zero_grad()
            network(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            old = keeper.mask["weight"]
            last = torch.where(old, network.weight.detach(), last)
            new = movement.choose(0.5)["weight"]
            assert torch.equal(network.weight.detach(), last * new)
            back += int((new & ~old).sum())
    assert back


def test_the_rate_is_that_of_each_step():
    scores = []
    for rates in ((0.1, 0.2), (0.1, 0.1)):
        network = nn.Linear(3, 2, bias=False).double()
        nn.init.ones_(network.weight)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        with gp.keep_mask(network, gp.Mask.dense(network), optimizer) as keeper:
            movement = MovementScores(keeper)
            for rate in rates:
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
                network(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
                optimizer.step()
            scores.append(movement.scores["weight"])
    assert torch.allclose(scores[0] - scores[1], torch.full((2, 3), -0.1 * 0.9, dtype=torch.float64))


def test_a_mask_that_a_norm_forbids_leaves_the_one_before():
    torch.manual_seed(0)
    network = nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 300))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with gp.keep_mask(network, gp.Mask.dense(network), optimizer) as keeper:
        movement = MovementScores(keeper)
        network(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        before = movement.choose(0.2, "global")
        values = [p.detach().clone() for p in network.parameters()]
        movement.tensors["sum/0.weight"].fill_(-1e9)
        with pytest.raises(ValueError, match="mask empties what a norm divides by"):
            movement.choose(0.9, "global")
        assert keeper.mask == before
        assert all(torch.equal(one, two) for one, two in zip(values, network.parameters(), strict=True))


def test_what_scores_cannot_be_gathered_on():
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with gp.keep_mask(network, gp.Mask.dense(network), optimizer) as keeper:
        movement = MovementScores(keeper)
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        for allocation in ("lamp", "2:4", "fair"):
            with pytest.raises(ValueError, match="^allocation must be one of global.* for movement"):
                movement.choose(0.5, allocation)
        with pytest.raises(ValueError, match=r"^sparsity must be in \[0, 1\)"):
            movement.choose(1)
        with pytest.raises(ValueError, match="^gathered must be of the layers of the mask"):
            MovementScores(keeper, {"sum/other": torch.zeros(2, 2)})
        movement.remove()
        keeper.update(gp.Mask({"weight": torch.eye(2).bool()}))
        with pytest.raises(ValueError, match="needs every weight, but a mask of sparsity 0.5 is in force"):
            MovementScores(keeper)


# --- The callback, in the training loop -------------------------------------------------------------------


SETTINGS = {
    "mlp": (mlp, {}),
    "channels last": (dcgan, {"channels_last": True}),
    "bfloat16": (dcgan, {"precision": "bfloat16"}),
    "batch norm, rmsprop": (lambda: dcgan("batch"), {"optimizer": "rmsprop", "learning_rate": 1e-4}),
    "spectral mlp, three critic steps": (lambda: mlp("spectral"), {"critic_steps": 3}),
}


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize(("make", "changes"), SETTINGS.values(), ids=SETTINGS)
def test_it_follows_its_schedule_and_the_mask_is_kept(make, changes, network):
    schedule, seen = gp.Cubic(0.8, start=2, end=7), Watch(checked_masks)
    state = train(
        make, lambda split: [MovementPruning(schedule, every=2, network=network), seen], 9, **changes
    )
    mask, slots = state.masks[network], weight_slots(state.gan.networks()[network])
    events = {2: 0.0, **{step: schedule(step) for step in (4, 6, 7)}}
    assert not seen.seen[1]
    for number in range(2, 10):
        target = events[max(event for event in events if event <= number)]
        assert seen.seen[number][network].pruned == pruned_count(target, mask.total), number
    assert seen.seen[9][network] == seen.seen[7][network] == mask
    rows = state.rows[f"MovementPruning/{network}"]
    assert [row["step"] for row in rows] == [4, 6, 7]
    assert rows[-1] == {"step": 7, "network": network, "sparsity": mask.sparsity}
    assert state.extras == {} and hooks_on(state.gan) == 0
    for key, kept in mask.items():  # gradients are masked again from the end on
        assert not slots[key].raw.grad[~kept].any()
        assert slots[key].raw.grad[kept].any()


def test_masks_move_until_the_end():
    seen = Watch(lambda state: state.masks["generator"])
    train(mlp, lambda split: [MovementPruning(constant(0.6, 12)), seen], 15, learning_rate=0.02)
    masks = list(seen.seen.values())
    assert len({mask.kept for mask in masks}) == 1
    moved = [not before.covers(after) for before, after in zip(masks, masks[1:], strict=False)]
    assert any(moved[:11])
    assert not any(moved[11:])


@pytest.mark.parametrize(
    ("schedule", "every", "sparsities"),
    [
        (Piecewise({0: 0.2, 3: 0.4, 5: 0.7}), 1, [0.2, 0.2, 0.4, 0.4, 0.7, 0.7]),
        (gp.dynamic.Geometric(0.75, start=1, every=2, keep=0.5), 1, [0, 0, 0.5, 0.5, 0.75, 0.75]),
        (constant(0.5, 4, start=1), 2, [0, 0, 0.5, 0.5, 0.5, 0.5]),
    ],
    ids=repr,
)
def test_every_schedule_drives_it(schedule, every, sparsities):
    seen = Watch(lambda state: state.masks["generator"].sparsity if state.masks else 0)
    train(mlp, lambda split: [MovementPruning(schedule, every=every), seen], 6)
    assert list(seen.seen.values()) == pytest.approx(sparsities, abs=0.01)


def test_protected_layers_stay_dense():
    state = train(mlp, lambda split: [MovementPruning(constant(0.5, 3), protect="layers.output")], 4)
    assert "layers.output.weight" not in state.masks["generator"]
    assert (gp.prunable_weights(state.gan.generator)["layers.output.weight"] != 0).all()


def test_clipped_weights_stay_clipped():
    """What happens to kept weights between two steps is not undone by the values that are remembered."""
    bounds = Watch(
        lambda state: max(float(p.detach().abs().max()) for p in state.gan.discriminator.parameters())
    )
    changes = {"loss": "wasserstein", "clip": 0.02, "learning_rate": 0.05, "optimizer": "rmsprop"}
    make = lambda split: [MovementPruning(constant(0.5, 5), network="discriminator"), bounds]
    state = train(mlp, make, 6, **changes)
    assert all(value <= 0.02 * (1 + 1e-6) for value in bounds.seen.values())
    assert state.masks["discriminator"].sparsity == pytest.approx(0.5, abs=0.01)


# --- What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        ({"schedule": 0.9}, TypeError, "schedule must be a schedule such as"),
        ({"schedule": OneShot(0.5)}, ValueError, "schedule must end after it starts"),
        ({"network": "critic"}, ValueError, "network"),
        ({"every": 0}, ValueError, "every"),
        ({"allocation": "lamp"}, ValueError, "allocation"),
        ({"allocation": "2:4"}, ValueError, "allocation"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, argument):
    with pytest.raises(error, match=f"^{argument}"):
        MovementPruning(**{"schedule": constant(0.5, 9), **arguments})


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_what_the_state_does_not_allow_is_refused_before_anything_changes(network):
    gan, split = mlp()
    gp.prune(gan, 0.25, which=network, protect="layers.output")
    masked, short, late = start(gan), start(mlp()[0], 5), gp.train(start(mlp()[0], 5), split)
    pruning = MovementPruning(gp.Cubic(0.5, start=3, end=5), network=network)
    for state, message in (
        (masked, f"a mask of sparsity 0.25.* is in force on the {network}"),
        (short, "schedule must end by the last step of the run, 5"),
        (late, f"schedule must end after step 5, where training goes on.*: the {network} has no mask yet"),
    ):
        before = everything(state)
        if state is short:
            pruning = MovementPruning(gp.Cubic(0.5, start=3, end=6), network=network)
        if state is late:
            pruning = MovementPruning(gp.Cubic(0.5, end=4), network=network)
        with pytest.raises(ValueError, match=message):
            gp.train(state, split, [pruning])
        assert equal(before, everything(state))
        assert hooks_on(state.gan) == 0


@pytest.mark.parametrize(("at", "error"), [(1, ValueError), (3, gp.masks.MaskError)])
def test_another_callback_may_not_prune_the_same_network(at, error):
    with pytest.raises(error, match=r"mask .*(generator)"):
        train(
            mlp,
            lambda split: [GradualPruning(OneShot(0.5, start=at)), MovementPruning(constant(0.5, 4, 2))],
            5,
        )


def test_what_was_gathered_on_other_layers_is_refused(tmp_path):
    gan, split = mlp()
    state = gp.train(start(gan), split, [MovementPruning(constant(0.5, 6))], until=3)
    del gan.masks["generator"]
    gan.masks["generator"] = gp.Mask.nonzero(gan.generator, protect="layers.output")
    with pytest.raises(ValueError, match="gathered must be of the layers of the mask"):
        gp.train(state, split, [MovementPruning(constant(0.5, 6), protect="layers.output")])
