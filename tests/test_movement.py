"""Movement pruning: against Sanh et al.'s update written out by hand, at every step, and resumed after a kill."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import ganprune as gp
from ganprune.allocation.choose import allocate
from ganprune.dynamic.movement import MovementPruning
from ganprune.dynamic.movement_phase import MovementPhase
from ganprune.dynamic.schedules import cubic
from ganprune.masks.apply import check_mask
from ganprune.masks.keep import keep_mask
from ganprune.masks.mask import MaskError, pruned_count
from ganprune.masks.weights import prunable_weights
from ganprune.training.callbacks import CHECKPOINT, PRUNE


class Noise:
    """Real samples that are a pure function of (seed, step)."""

    def __init__(self, *shape):
        self.shape = shape

    def batch(self, batch_size, seed, step):
        return torch.randn(batch_size, *self.shape, generator=torch.Generator().manual_seed(seed + step))


IMAGES, POINTS = Noise(1, 28, 28), Noise(3)


def dcgan(norm="spectral"):
    return gp.dcgan(width=2, latent_dim=4, norm=norm, device="cpu"), IMAGES


def mlp(norm="none"):
    return gp.mlp_gan((3,), latent_dim=4, hidden=(12, 10), norm=norm, device="cpu"), POINTS


def start(gan, steps=8, masks=None, **changes):
    settings = {"steps": steps, "batch_size": 4, "precision": "float32", **changes}
    return gp.TrainState(gan, gp.TrainConfig(**settings), masks)


def everything(state):
    """All tensors of a state, by name."""
    found = {
        f"{n}/{k}": v.clone() for n, net in state.gan.networks().items() for k, v in net.state_dict().items()
    }
    for name, optimizer in state.optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            found |= {f"{name}/{index}/{key}": value.clone() for key, value in entries.items()}
    found |= {f"extra/{key}": value.clone() for key, value in state.extras.items()}
    found |= {f"mask/{name}/{key}": kept for name, mask in state.masks.items() for key, kept in mask.items()}
    return found


def assert_same(first, second):
    first, second = everything(first), everything(second)
    assert first.keys() == second.keys()
    assert [key for key, value in first.items() if not torch.equal(value, second[key])] == []


def zeros(model):
    """Where the prunable weights are zero."""
    return {key: weight.detach() == 0 for key, weight in prunable_weights(model).items()}


def hooks(state, network):
    optimizer = state.optimizers[network]
    return len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)


class Watch:
    """Keeps what a function of the state gives after each step."""

    order = CHECKPOINT + 1

    def __init__(self, look):
        self.look, self.seen = look, {}

    def __call__(self, state):
        self.seen[state.step] = self.look(state)


# --- The phase, in a loop of one's own --------------------------------------------------------------------


def smooth_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(count):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def the_loss(output, x):
    return (output.square().sum(1) * (1 + x[:, 0])).mean()


def step(model, optimizer, x):
    optimizer.zero_grad()
    the_loss(model(x), x).backward()
    optimizer.step()


def test_scores_are_the_sum_of_minus_rate_times_gradient_times_weight():
    """Recomputed by hand with plain tensors: two linear layers, SGD, straight-through top-k."""
    model, inputs, rate, sparsity = smooth_network(), batches(4), 0.1, 0.5
    shadow = {key: w.detach().clone() for key, w in prunable_weights(model).items()}
    biases = {key: p.detach().clone() for key, p in model.named_parameters() if "bias" in key}
    sums = {key: torch.zeros_like(w) for key, w in shadow.items()}
    kept = {key: torch.ones_like(w, dtype=torch.bool) for key, w in shadow.items()}
    for x in inputs:
        leaves = {key: (w * kept[key]).requires_grad_(True) for key, w in shadow.items()}
        values = {**leaves, **{k: b.requires_grad_(True) for k, b in biases.items()}}
        loss = the_loss(functional_call(model, values, (x,)), x)
        gradients = dict(zip(values, torch.autograd.grad(loss, list(values.values())), strict=True))
        for key in shadow:
            sums[key] -= rate * gradients[key] * shadow[key]
            shadow[key] -= rate * gradients[key] * kept[key]
        biases = {key: (b - rate * gradients[key]).detach() for key, b in biases.items()}
        kept = dict(allocate(sums, sparsity, "uniform"))
    optimizer = torch.optim.SGD(model.parameters(), rate)
    with MovementPhase(model, optimizer, sparsity) as phase:
        for x in inputs:
            optimizer.zero_grad()
            the_loss(model(x), x).backward()
            optimizer.step()
            check_mask(model, phase.mask)
            assert all((s != 0).all() for s in phase._shadow.values())
    for key, total in phase.scores.items():
        assert torch.allclose(total, sums[key], rtol=1e-10)
        assert torch.equal(phase.mask[key], kept[key])
        assert torch.allclose(model.state_dict()[key], shadow[key] * kept[key], rtol=1e-10)


def test_a_weight_that_shrinks_goes_and_one_that_grows_stays():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.1]])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with MovementPhase(model, optimizer, 0.5) as phase:
        (model(torch.tensor([[1.0, -1.0]]))).sum().backward()  # the first is pushed down, the second up
        optimizer.step()
    assert phase.mask["weight"].tolist() == [[False, True]]  # magnitude would keep the first


def test_pruned_weights_can_come_back():
    torch.manual_seed(1)
    model = nn.Linear(6, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    seen = []
    with MovementPhase(model, optimizer, 0.5) as phase:
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            seen.append(phase.mask)
    assert any(not before.covers(after) for before, after in zip(seen, seen[1:], strict=False))


def test_hands_over_a_mask_that_keep_mask_takes_on():
    gan = gp.dcgan(width=4, latent_dim=8, device="cpu")
    optimizer = torch.optim.Adam(gan.generator.parameters(), 1e-3)
    loss_fn = gp.generator_loss(gan, batches=3, batch_size=4)

    def train():
        for loss in loss_fn(gan.generator):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with MovementPhase(gan.generator, optimizer, sparsity=0.3, every=2) as phase:
        train()
        phase.sparsity = 0.8
    assert phase.mask.pruned == round(0.8 * phase.mask.total)
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    with keep_mask(gan.generator, phase.mask, optimizer, ema=gan.generator_ema):
        train()
    check_mask(gan.generator, phase.mask)
    assert repr(phase).startswith("MovementPhase(sparsity=0.8, steps=3")


def test_under_spectral_norm():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with MovementPhase(model, optimizer, 0.5) as phase:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
    assert list(phase.mask) == ["0.weight", "2.weight"]
    check_mask(model, phase.mask)


def test_an_error_inside_puts_the_shadow_weights_back():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 1e-30)  # too little to move a weight, and yet a score
    before = model.weight.detach().clone()

    def fail():
        with MovementPhase(model, optimizer, 0.5):
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
            assert (model.weight == 0).any()
            raise KeyError("own error")

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(model.weight.detach(), before)
    assert not optimizer._optimizer_step_post_hooks


def test_what_it_refuses():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(TypeError, match="a torch optimiser other than LBFGS, got LBFGS"):
        MovementPhase(model, torch.optim.LBFGS(model.parameters()), 0.5)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got 1"):
        MovementPhase(model, optimizer, 1)
    with pytest.raises(ValueError, match="every must be an integer of at least 1, got 0"):
        MovementPhase(model, optimizer, 0.5, every=0)
    with pytest.raises(ValueError, match="optimizer does not hold weight"):
        MovementPhase(nn.Linear(2, 2), optimizer, 0.5)

    def nothing():
        with MovementPhase(model, optimizer, 0.5):
            pass

    with pytest.raises(MaskError, match="no optimiser step was made"):
        nothing()


def test_a_phase_chooses_when_it_is_told_to():
    model, inputs = smooth_network(), batches(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    phase = MovementPhase(model, optimizer, 0.5, every=None)
    phase.open()
    for x in inputs:
        step(model, optimizer, x)
    assert phase.mask.pruned == 0
    first = phase.choose()
    assert phase.choose() == first == phase.mask
    check_mask(model, first)
    assert first.pruned == first.total // 2
    phase.sparsity = 0.75
    assert phase.close().pruned == first.total * 3 // 4
    assert not phase.is_open


def test_a_phase_follows_the_learning_rate_of_each_step():
    scores = []
    for rates in ((0.1, 0.2), (0.1, 0.1)):
        model = nn.Linear(3, 2, bias=False).double()
        nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with MovementPhase(model, optimizer, 0.0) as phase:
            for rate in rates:
                packed = optimizer.state_dict()
                packed["param_groups"][0]["lr"] = rate
                optimizer.load_state_dict(packed)  # gives the optimiser other groups
                optimizer.zero_grad()
                model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
                optimizer.step()
            scores.append(phase.scores["weight"])
    assert torch.allclose(scores[0] - scores[1], torch.full((2, 3), -0.1 * 0.9, dtype=torch.float64))


def test_a_phase_is_saved_and_loaded():
    model, inputs = smooth_network(), batches(6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    phase = MovementPhase(model, optimizer, 0.5, every=2)
    with pytest.raises(MaskError, match="not open, so it has nothing to save"):
        phase.state_dict()
    phase.open()
    for x in inputs[:3]:
        step(model, optimizer, x)
    twin = copy.deepcopy(model)
    other = torch.optim.SGD(twin.parameters(), 0.1)
    again = MovementPhase(twin, other, 0.5, every=2)
    again.load_state_dict(copy.deepcopy(phase.state_dict()))
    again.open()
    for x in inputs[3:]:
        step(model, optimizer, x)
        step(twin, other, x)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in phase.state_dict().items())
    assert phase.close() == again.close()
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_mask_that_a_norm_forbids_leaves_the_one_before():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 300))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    phase = MovementPhase(model, optimizer, 0.2, "global", every=None)
    phase.open()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    before, values = phase.choose(), [p.detach().clone() for p in model.parameters()]
    phase.sparsity = 0.999
    phase._sums["0.weight"].fill_(-1e9)
    with pytest.raises(ValueError, match="mask empties what a norm divides by"):
        phase.choose()
    assert phase.mask == before
    assert all(torch.equal(one, two) for one, two in zip(values, model.parameters(), strict=True))


def test_what_a_phase_does_not_go_with():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for allocation in ("lamp", "2:4", "fair"):
        with pytest.raises(ValueError, match=f"global, .*per-output for movement, got '{allocation}'"):
            MovementPhase(model, optimizer, 0.5, allocation)
    phase = MovementPhase(model, optimizer, 0.5)
    phase.open()
    for another in (phase, MovementPhase(model, optimizer, 0.5)):
        with pytest.raises(ValueError, match="a movement phase is open on this model already"):
            another.open()
    phase.detach()
    with (
        keep_mask(model, gp.Mask({"weight": torch.eye(2).bool()}), optimizer),
        pytest.raises(ValueError, match="needs every weight, but a mask of sparsity 0.5 is in force"),
    ):
        phase.open()


# --- The callback, in the training loop -------------------------------------------------------------------


def lowest(values, count):
    """The positions of the ``count`` smallest numbers; of equal ones the first."""
    return sorted(range(len(values)), key=lambda position: (values[position], position))[:count]


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_the_mask_is_that_of_the_update_written_out_by_hand(allocation):
    """Plain tensors, plain SGD, autograd: S ← S − lr · ∂L/∂W′ · W and W ← W − lr · ∂L/∂W′ · M, W′ = W M."""
    gan, split = mlp()
    twin, _ = mlp()
    rate, steps, begin, end = 0.05, 7, 1, 5
    config = {"optimizer": "sgd", "learning_rate": rate, "decay_from": 1.0, "loss": "non-saturating"}
    state = start(gan, steps, **config)
    pruning = MovementPruning(sparsity=0.5, schedule="one-shot", start=begin, end=end, allocation=allocation)
    gp.train(state, split, [pruning])

    softplus, bound = nn.functional.softplus, set(prunable_weights(twin.generator))
    values = {key: p.detach().clone() for key, p in twin.generator.named_parameters()}
    kept = {key: torch.ones_like(values[key]) for key in bound}
    scores = {key: torch.zeros_like(values[key]) for key in bound}
    optimizer = torch.optim.SGD(twin.discriminator.parameters(), rate)
    for number in range(steps):
        draw = gp.step_seed(0, number, "critic 0")
        leaves = {k: (v * kept[k] if k in kept else v).requires_grad_(True) for k, v in values.items()}
        fake = functional_call(twin.generator, leaves, (gp.sample_latents(4, 4, draw),))
        optimizer.zero_grad()
        on_real, on_fake = twin.discriminator(split.batch(4, draw, 0)), twin.discriminator(fake.detach())
        (softplus(-on_real).mean() + softplus(on_fake).mean()).backward()
        optimizer.step()
        loss = softplus(-twin.discriminator(fake)).mean()
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for key, gradient in gradients.items():
            if key in bound and begin <= number < end:
                scores[key] -= rate * gradient * values[key]
            values[key] = (values[key] - rate * gradient * kept.get(key, 1)).detach()
        if begin <= number < end:
            every = [
                (value, key) for key in prunable_weights(twin.generator) for value in scores[key].flatten()
            ]
            wholes = {None: range(len(every))} if allocation == "global" else {}
            for index, (_, key) in enumerate(every):
                if allocation == "uniform":
                    wholes.setdefault(key, []).append(index)
            flat = torch.ones(len(every))
            for whole in wholes.values():
                for position in lowest([float(every[index][0]) for index in whole], len(whole) // 2):
                    flat[whole[position]] = 0
            sizes = [values[key].numel() for key in prunable_weights(twin.generator)]
            for key, part in zip(prunable_weights(twin.generator), flat.split(sizes), strict=True):
                kept[key] = part.view_as(values[key])
    mask = state.masks["generator"]
    assert 0 < mask.pruned == mask.total // 2
    for key, whole in kept.items():
        assert torch.equal(mask[key], whole.bool()), key
        found = prunable_weights(gan.generator)[key]
        assert torch.allclose(found, values[key] * whole, rtol=1e-4, atol=1e-6)


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
    gan, split = make()
    pruning = MovementPruning(network, 0.8, start=2, end=7, every=2)
    model = gan.networks()[network]
    look = Watch(lambda state: (zeros(model), hooks(state, network), dict(state.masks)))
    state = start(gan, 9, **changes)
    gp.train(state, split, [pruning, look])
    assert MovementPruning.order == PRUNE
    total = gp.Mask.dense(model).total
    at = {2: 0.0, **{step: cubic(step, start=2, end=7, final=0.8) for step in (4, 6, 7)}}
    for number, (where, registered, masks) in look.seen.items():
        target = at[max((event for event in at if event <= number), default=2)]
        assert sum(int(flags.sum()) for flags in where.values()) == pruned_count(target, total), number
        assert registered == ((0, 0) if number < 2 else (1, 1) if number < 7 else (0, 1))
        assert (network in masks) == (number >= 7)
        assert pruning.sparsity_at(number) == target
    mask = state.masks[network]
    assert mask.pruned == pruned_count(0.8, total)
    state.keepers[network].check()
    if network == "generator":
        check_mask(gan.generator_ema, mask)
    assert [row["step"] for row in pruning.rows] == [4, 6, 7]
    assert pruning.rows[-1] == {"step": 7, "network": network, "sparsity": mask.sparsity}
    assert state.extras == {}
    assert all(
        (~kept <= where).all() for kept, where in zip(mask.values(), zeros(model).values(), strict=True)
    )
    slots = gp.masks.weight_slots(model)
    for key, kept in mask.items():  # gradients are masked from then on
        assert not slots[key].raw.grad[~kept].any()
        assert slots[key].raw.grad[kept].any()


def test_masks_move_until_the_end():
    gan, split = mlp()
    look = Watch(lambda state: gp.Mask({k: ~z for k, z in zeros(gan.generator).items()}))
    pruning = MovementPruning(sparsity=0.6, schedule="one-shot", end=12)
    gp.train(start(gan, 15, learning_rate=0.02), split, [pruning, look])
    masks = list(look.seen.values())
    assert len({mask.kept for mask in masks}) == 1
    moved = [not before.covers(after) for before, after in zip(masks, masks[1:], strict=False)]
    assert any(moved[:11])
    assert not any(moved[11:])


def test_rounds_points_and_functions_are_schedules_too():
    def sparsities(steps, **arguments):
        gan, split = mlp()
        count = gp.Mask.dense(gan.generator).total
        look = Watch(lambda state: sum(int(z.sum()) for z in zeros(gan.generator).values()) / count)
        gp.train(start(gan, steps), split, [MovementPruning(**arguments), look])
        return pytest.approx(list(look.seen.values()), abs=0.01)

    points = {"points": {0: 0.2, 3: 0.4, 5: 0.7}}
    assert sparsities(6, schedule="piecewise", schedule_options=points) == [0.2, 0.2, 0.4, 0.4, 0.7, 0.7]
    assert sparsities(6, schedule=lambda step: step / 10, end=5, every=2) == [0, 0.2, 0.2, 0.4, 0.5, 0.5]
    rounds = {"schedule": "geometric", "schedule_options": {"keep": 0.5}, "start": 1}
    assert sparsities(6, sparsity=0.75, every=2, **rounds) == [0, 0, 0.5, 0.5, 0.75, 0.75]
    assert sparsities(4, sparsity=0.5, schedule="one-shot", start=1, end=4) == [0, 0.5, 0.5, 0.5]


def test_protected_layers_stay_dense():
    gan, split = mlp()
    state = start(gan, 4)
    gp.train(state, split, [MovementPruning(sparsity=0.5, end=3, protect="layers.output")])
    assert "layers.output.weight" not in state.masks["generator"]
    assert not zeros(gan.generator)["layers.output.weight"].any()


def test_clipped_weights_stay_clipped():
    """What happens to kept weights between two steps is not undone by the shadow weights."""
    gan, split = mlp()
    bounds = Watch(lambda state: max(float(p.detach().abs().max()) for p in gan.discriminator.parameters()))
    state = start(gan, 6, loss="wasserstein", clip=0.02, learning_rate=0.05, optimizer="rmsprop")
    gp.train(state, split, [MovementPruning("discriminator", 0.5, end=5), bounds])
    shadow = 0.02 * (1 + 1e-6)
    assert all(value <= shadow for value in bounds.seen.values())
    assert state.masks["discriminator"].sparsity == pytest.approx(0.5, abs=0.01)


# --- Resumed ----------------------------------------------------------------------------------------------


RESUMED = {
    "mlp": (mlp, {"optimizer": "sgd", "learning_rate": 0.05}),
    "dcgan": (dcgan, {"decay_from": 0.3}),
    "bfloat16": (dcgan, {"precision": "bfloat16", "critic_steps": 2}),
}


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize(("make", "changes"), RESUMED.values(), ids=RESUMED)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, make, changes, network):
    def callbacks():
        return MovementPruning(network, 0.8, start=1, end=6, every=2)

    def leave_at(stop):
        def leave(state):
            if state.step == stop:
                state.save(tmp_path / f"{stop}.safetensors")
                raise KeyboardInterrupt

        leave.order = CHECKPOINT
        return leave

    gan, split = make()
    straight = gp.train(start(gan, **changes), split, [callbacks()])
    for stop in range(1, 8):
        gan, _ = make()
        with pytest.raises(KeyboardInterrupt):
            gp.train(start(gan, **changes), split, [callbacks(), leave_at(stop)])
        resumed = gp.TrainState.load(tmp_path / f"{stop}.safetensors", "cpu")
        assert bool(resumed.extras) == (1 <= stop < 6)
        saved = gp.load(tmp_path / f"{stop}.safetensors", "cpu").networks()[network]
        pruned = sum(int(flags.sum()) for flags in zeros(saved).values())
        assert pruned == pruned_count(callbacks().sparsity_at(stop), gp.Mask.dense(saved).total)
        gp.train(resumed, split, [callbacks()])
        assert_same(straight, resumed)


def test_begin_and_train_again_do_not_double_anything():
    def run(split, gan, *, disturb):
        state, pruning = start(gan, 9), MovementPruning(sparsity=0.7, start=1, end=7)

        def stop(state):
            if state.step in (3, 5):
                raise KeyboardInterrupt

        if not disturb:
            return gp.train(state, split, [pruning])
        for _ in range(2):
            pruning.begin(state)
        with pytest.raises(KeyboardInterrupt):
            gp.train(state, split, [pruning, stop])
        for _ in range(2):
            pruning.begin(state)
            assert hooks(state, "generator") == (1, 1)
        with pytest.raises(KeyboardInterrupt):
            gp.train(state, split, [pruning, stop])  # the same callback goes on
        another = MovementPruning(sparsity=0.7, start=1, end=7)
        another.begin(state)
        assert hooks(state, "generator") == (1, 1)
        gp.train(state, split, [another])  # and another one takes over
        assert hooks(state, "generator") == (0, 1)
        another.begin(state)
        gc.collect()
        assert hooks(state, "generator") == (0, 1)
        return state

    gan, split = dcgan()
    twin, _ = dcgan()
    assert_same(run(split, gan, disturb=False), run(split, twin, disturb=True))


def test_extras_of_a_state_are_saved_and_loaded(tmp_path):
    gan, _ = mlp()
    state = start(gan)
    state.extras = {"own/a": torch.arange(3), "own/b/c": torch.tensor([True])}
    state.save(tmp_path / "state.safetensors")
    found = gp.TrainState.load(tmp_path / "state.safetensors", "cpu").extras
    assert found.keys() == state.extras.keys()
    assert all(torch.equal(value, found[key]) for key, value in state.extras.items())


# --- What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"network": "critic"}, ValueError, "network must be one of generator, discriminator, got 'critic'"),
        ({"sparsity": 1.0}, ValueError, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"sparsity": None}, ValueError, "sparsity must be given for the schedule 'cubic'"),
        ({"schedule": "linear"}, ValueError, "schedule must be one of .* got 'linear'"),
        ({"schedule": "one-shot", "end": None}, ValueError, "end must be given for the schedule 'one-shot'"),
        ({"end": None}, ValueError, "end must be given for the schedule 'cubic', got None"),
        ({"schedule": "one-shot", "end": 0}, ValueError, "end must be after start, 0, got 0"),
        ({"every": 0}, ValueError, "every must be an integer of at least 1, got 0"),
        ({"allocation": "lamp"}, ValueError, "allocation must be one of .*per-output, got 'lamp'"),
        ({"allocation": "2:4"}, ValueError, "allocation must be one of .*per-output, got '2:4'"),
        ({"schedule": lambda step: 0.5 if step < 5 else 0.1}, ValueError, "schedule must not fall"),
        ({"schedule": lambda step: 0.4}, ValueError, "must reach the sparsity 0.5 at end 9, it gives 0.4"),
        ({"schedule_options": {"steep": 1}}, TypeError, "steep"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        MovementPruning(**{"sparsity": 0.5, "end": 9, **arguments})


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_what_the_state_does_not_allow_is_refused_before_anything_changes(network):
    gan, split = mlp()
    mask = gp.prune(gan.networks()[network], 0.25, protect="layers.output")
    state = start(gan, 8, {network: mask})
    before = everything(state)
    with pytest.raises(ValueError, match=f"a mask of sparsity 0.25.* is in force on the {network}"):
        gp.train(state, split, [MovementPruning(network, 0.5, start=3, end=6)])
    gan, split = mlp()
    short = start(gan, 5)
    with pytest.raises(ValueError, match="end must be at most 5, the last step of the run, got 6"):
        gp.train(short, split, [MovementPruning(network, 0.5, start=3, end=6)])
    late = gp.train(start(mlp()[0], 5), split)
    with pytest.raises(ValueError, match=f"which training goes on, 5, got 4: the {network} has no mask yet"):
        gp.train(late, split, [MovementPruning(network, 0.5, end=4)])
    for one in (state, short, late):
        assert hooks(one, network)[0] == 0
        assert one.extras == {}
    after = everything(state)
    assert [key for key, value in before.items() if not torch.equal(value, after[key])] == []


@pytest.mark.parametrize("at", [1, 3])
def test_a_mask_that_comes_into_force_on_the_way_is_refused(at):
    gan, split = mlp()
    other = gp.GradualPruning(sparsity=0.5, schedule="one-shot", start=at)
    with pytest.raises(ValueError, match="a mask of sparsity 0.5 is in force on the generator"):
        gp.train(start(gan, 5), split, [other, MovementPruning(sparsity=0.5, start=2, end=4)])


def test_a_state_that_was_trained_without_the_callback_is_refused(tmp_path):
    gan, split = mlp()
    state, pruning = start(gan, 8), MovementPruning(sparsity=0.5, schedule="one-shot", end=6)

    def leave(state):
        if state.step == 3:
            state.save(tmp_path / "state.safetensors")

    leave.order = CHECKPOINT
    gp.train(state, split, [pruning, leave])
    resumed = gp.TrainState.load(tmp_path / "state.safetensors", "cpu")
    gp.train(resumed, split)
    resumed.config = gp.TrainConfig(**{**vars(resumed.config), "steps": 12})
    with pytest.raises(MaskError, match="non-zero weights under its mask"):
        gp.train(resumed, split, [MovementPruning(sparsity=0.5, schedule="one-shot", end=10)])
    fewer = gp.TrainState.load(tmp_path / "state.safetensors", "cpu")
    with pytest.raises(ValueError, match=r"same layers; not so .*sum/layers.output.weight"):
        MovementPruning(sparsity=0.5, end=6, protect="layers.output").begin(fewer)


def test_a_diverging_run_says_so():
    gan, split = mlp()
    with pytest.raises(
        gp.training.DivergenceError, match="training diverged by step .*: movement scores or weights"
    ):
        gp.train(
            start(gan, 30, learning_rate=1e30, optimizer="sgd"),
            split,
            [MovementPruning(sparsity=0.5, end=30)],
        )


def test_repr():
    assert (
        repr(MovementPruning(sparsity=0.5, end=9))
        == "MovementPruning(generator, uniform, steps 0 to 9 every 1)"
    )
