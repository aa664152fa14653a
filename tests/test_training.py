"""The loop: against a loop written out by hand, resumed after a kill, masked, diverging, on every loss."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from tools.small_gans import Ring, config, equal, hooks_on, small_gan, weights

import ganprune as gp
from ganprune.networks.sampling import latent_dim_of


@pytest.fixture(scope="module")
def data():
    return gp.mnist("cpu")


def tiny(norm="spectral", seed=0):
    return gp.dcgan(width=2, latent_dim=4, norm=norm, seed=seed, device="cpu")


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_loop_equals_one_written_out_by_hand(data, norm):
    """Separate passes, plain Adam, no tricks: the textbook loop gives the same weights."""
    gan = tiny(norm)
    twin = copy.deepcopy(gan)
    settings = config(betas=(0.5, 0.999), penalty=None, channels_last=False, ema_decay=0.9, decay_from=0.5)
    gp.train(gp.TrainState(gan, settings), data.train)

    bce = torch.nn.functional.binary_cross_entropy_with_logits
    optimisers = [
        torch.optim.Adam(n.parameters(), 1e-3, (0.5, 0.999)) for n in (twin.generator, twin.discriminator)
    ]
    twin.generator.train()
    for step in range(4):
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = 1e-3 * (1.0 if step < 2 else (4 - step) / 2)
        draw = gp.step_seed(0, step, "critic 0")
        real = data.train.batch(8, draw, 0)
        fake = twin.generator(gp.sample_latents(8, latent_dim_of(twin.generator), draw))
        on_real, on_fake = twin.discriminator(real), twin.discriminator(fake.detach())
        optimisers[1].zero_grad()
        (bce(on_real, torch.ones(8)) + bce(on_fake, torch.zeros(8))).backward()
        optimisers[1].step()
        optimisers[0].zero_grad()
        bce(twin.discriminator(fake), torch.ones(8)).backward()
        optimisers[0].step()
        decay = min(0.9, (1 + step) / (10 + step))
        for kept, current in zip(twin.generator_ema.parameters(), twin.generator.parameters(), strict=True):
            kept.data = decay * kept.data + (1 - decay) * current.data
        for kept, current in zip(twin.generator_ema.buffers(), twin.generator.buffers(), strict=True):
            kept.copy_(current)
    for key, value in weights(gan).items():
        assert torch.allclose(value.float(), weights(twin)[key].float(), atol=2e-5), key


@pytest.mark.parametrize("loss", gp.losses.LOSSES)
@pytest.mark.parametrize("penalty", [None, "gradient", "r1"])
def test_every_loss_and_penalty_trains(data, loss, penalty):
    gan = tiny("none")
    before = weights(gan)
    state = gp.train(gp.TrainState(gan, config(loss=loss, penalty=penalty, critic_steps=2)), data.train)
    assert state.step == 4 and len(state.history) == 2
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in state.history)
    after = weights(gan)
    assert all(not torch.equal(before[k], after[k]) for k in before if k.endswith("conv1.weight"))
    assert all(p.requires_grad for p in gan.discriminator.parameters())


def test_a_lazy_penalty_weighs_more_and_comes_less_often(data):
    lazy, by_hand = tiny("none"), tiny("none")
    gp.train(gp.TrainState(lazy, config(steps=2, penalty_weight=0.5, penalty_every=2)), data.train)
    state = gp.TrainState(by_hand, config(steps=2, penalty_weight=1.0, penalty_every=1))
    gp.train(state, data.train, until=1)
    state.config = config(steps=2, penalty=None)
    gp.train(state, data.train)
    expected = weights(by_hand)
    assert all(torch.equal(value, expected[key]) for key, value in weights(lazy).items())


def test_clipping_bounds_the_critic(data):
    gan = tiny("none")
    gp.train(
        gp.TrainState(gan, config(loss="wasserstein", optimizer="rmsprop", clip=0.01, critic_steps=2)),
        data.train,
    )
    assert max(p.abs().max() for p in gan.discriminator.parameters()) <= 0.01


def test_training_is_a_function_of_the_seed(data):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(int(time.time()))  # the global stream must not matter
        gan = tiny()
        gp.train(gp.TrainState(gan, config(seed=seed)), data.train)
        runs.append(weights(gan))
    assert equal(runs[0], runs[1]) and not equal(runs[0], runs[2])


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", ["spectral", "batch"])
def test_resuming_is_bit_identical(data, tmp_path, stop, precision, norm):
    settings, path = config(precision=precision), tmp_path / "state.safetensors"
    straight, stopped = tiny(norm), tiny(norm)
    gp.train(gp.TrainState(straight, settings), data.train)

    def leave(state):
        if state.step == stop:
            state.save(path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gp.train(gp.TrainState(stopped, settings), data.train, [leave])
    state = gp.TrainState.load(path, "cpu")
    assert state.step == stop
    gp.train(state, data.train)
    assert equal(weights(straight), weights(state.gan))


def test_a_masked_run_resumes_with_its_mask(data, tmp_path):
    gan = tiny()
    masks = gp.prune(gan, sparsity=0.6, which="both")
    twin = copy.deepcopy(gan)
    gp.train(gp.TrainState(gan, config()), data.train)

    state = gp.TrainState(twin, config())

    def leave(state):
        if state.step == 2:
            state.save(tmp_path / "state.safetensors")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gp.train(state, data.train, [leave])
    resumed = gp.TrainState.load(tmp_path / "state.safetensors", "cpu")
    assert resumed.masks == masks
    gp.train(resumed, data.train)
    assert equal(weights(gan), weights(resumed.gan))
    for name, mask in masks.items():
        gp.check_mask(resumed.gan.networks()[name], mask)


SCRIPT = textwrap.dedent("""
    import sys, pathlib, torch, ganprune as gp
    torch.set_num_threads(1)
    path, out = map(pathlib.Path, sys.argv[1:])
    if path.exists():
        state = gp.TrainState.load(path, "cpu")
    else:
        gan = gp.dcgan(width=2, latent_dim=4, device="cpu")
        state = gp.TrainState(gan, gp.TrainConfig(steps=120, batch_size=8, precision="float32"))
    gp.train(state, gp.mnist("cpu").train, [gp.every(5, gp.training.Checkpoint(path))])
    gp.save(out, state.gan)
""")


def test_killed_and_started_again_ends_with_the_same_weights(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    subprocess.run([*command, tmp_path / "a", tmp_path / "straight"], check=True)
    process = subprocess.Popen([*command, tmp_path / "b", tmp_path / "resumed"])
    while not (tmp_path / "b").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "resumed").exists()
    subprocess.run([*command, tmp_path / "b", tmp_path / "resumed"], check=True)
    assert equal(*(weights(gp.load(tmp_path / name, "cpu")) for name in ("straight", "resumed")))


def test_a_state_is_not_a_gan_and_a_gan_is_no_state(tmp_path):
    gp.save(tmp_path / "gan.safetensors", tiny())
    with pytest.raises(gp.core.CheckpointError, match="holds a GAN but no training state"):
        gp.TrainState.load(tmp_path / "gan.safetensors")


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_masks_hold_throughout_training(data, network, optimizer):
    gan = tiny()
    mask = gp.prune(gan, sparsity=0.5, which=network)
    state = gp.TrainState(gan, config(optimizer=optimizer, weight_decay=1e-2))
    checks = []

    def check(state):
        gp.check_mask(state.gan.networks()[network], mask)
        if network == "generator":
            gp.check_mask(state.gan.generator_ema, mask)
        checks.append(state.step)

    gp.train(state, data.train, [check])
    assert checks == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="network must be one of generator, discriminator"):
        gan.masks["generator_ema"] = mask


def test_a_mask_may_shrink_during_training(data):
    gan = tiny()
    gp.prune(gan, sparsity=0.2)
    state = gp.TrainState(gan, config())
    smaller = gp.prune(copy.deepcopy(gan.generator), sparsity=0.8)
    gp.train(state, data.train, [gp.every(2, lambda s: s.gan.masks.update(generator=smaller), at_end=False)])
    gp.check_mask(gan.generator, smaller)
    gp.check_mask(gan.generator_ema, smaller)
    assert state.masks["generator"] == smaller


def test_divergence_names_step_and_loss(data):
    gan = tiny()

    def poison(state):
        if state.step == 3:
            state.gan.generator.layers.deconv4.bias.data.fill_(float("nan"))

    message = "training diverged at step 4: the discriminator loss is nan; lower learning_rate"
    with pytest.raises(gp.training.DivergenceError, match=message):
        gp.train(gp.TrainState(gan, config()), data.train, [poison])


def test_learning_rate_is_held_then_falls_to_zero():
    settings = config(steps=100, decay_from=0.5)
    factors = [settings.learning_rate_factor(step) for step in range(100)]
    assert factors[:51] == [1.0] * 51 and factors[-1] == pytest.approx(1 / 50)
    assert all(a >= b for a, b in zip(factors, factors[1:], strict=False))
    constant = config(steps=100, decay_from=1.0)
    assert all(constant.learning_rate_factor(step) == 1.0 for step in range(100))


def test_moving_average_follows_the_generator(data):
    gan = tiny()
    gp.train(gp.TrainState(gan, config(ema_decay=0.0)), data.train)
    for kept, current in zip(gan.generator_ema.parameters(), gan.generator.parameters(), strict=True):
        assert torch.allclose(kept, current, atol=1e-6)
    assert not any(p.requires_grad for p in gan.generator_ema.parameters())


def test_epochs_go_on_where_the_last_one_ended():
    """Five epochs draw other batches each, leave no hook behind, and are the same run as one call of train."""
    seen = []

    class Spy(Ring):
        def batch(self, batch_size, seed, step):
            points = super().batch(batch_size, seed, step)
            seen.append(points)
            return points

    gan, whole = small_gan(), small_gan()
    for one in (gan, whole):
        gp.prune(one, 0.5)
    state = gp.TrainState(gan, config(steps=500))
    for epoch in range(1, 6):
        gp.training.train_epoch(state, Spy())
        assert state.step == 100 * epoch
        assert hooks_on(gan) == 0
    assert len(torch.stack(seen).unique(dim=0)) == 500
    gp.train(gp.TrainState(whole, config(steps=500)), Ring())
    assert equal(weights(gan), weights(whole))
    with pytest.raises(ValueError, match="state has done all 500 steps"):
        gp.training.train_epoch(state, Spy())


class DropoutNetwork(torch.nn.Module):
    """A discriminator or generator that draws random numbers in its layers and in its forward pass."""

    latent_dim = 3

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.dropout = torch.nn.Linear(inputs, 16), torch.nn.Dropout(0.5)
        self.last = torch.nn.Linear(16, outputs)

    def forward(self, x):
        noise = 0.1 * torch.randn(len(x), 16)
        return self.last(self.dropout(torch.relu(self.first(x)) + noise)).squeeze(1)


def with_dropout():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return gp.GAN(DropoutNetwork(3, 2), DropoutNetwork(2, 1))


def test_random_layers_follow_the_seed_and_the_step():
    """One seed, one result, uninterrupted or resumed, and the global random state is left as it was found."""
    runs = []
    for seed, stop in ((1, None), (2, None), (3, 2)):
        gan = with_dropout()
        state = gp.TrainState(gan, config())
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        if stop is not None:
            gp.train(state, Ring(), until=stop)
            torch.rand(5)
        gp.train(state, Ring())
        if stop is None:
            assert torch.equal(before, torch.get_rng_state())
        runs.append(weights(gan))
    assert equal(runs[0], runs[1]) and equal(runs[0], runs[2])
    other = with_dropout()
    gp.train(gp.TrainState(other, config(seed=1)), Ring())
    assert not equal(runs[0], weights(other))


class FlatteningDiscriminator(torch.nn.Module):
    """What nearly everybody writes: view behind a convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = torch.nn.Conv2d(1, 8, 3, 2, 1), torch.nn.Linear(8 * 196, 1)

    def forward(self, images):
        hidden = self.conv(images)
        return self.last(hidden.view(len(hidden), -1)).flatten()


def test_networks_of_ones_own_keep_their_memory_layout(data):
    gan = gp.GAN(tiny().generator, FlatteningDiscriminator())
    gp.train(gp.TrainState(gan, config(steps=2)), data.train)
    assert gan.discriminator.conv.weight.is_contiguous()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        gp.train(gp.TrainState(gan, config(steps=2, channels_last=True)), data.train)


def test_real_and_generated_samples_share_a_pass_only_where_they_do_not_see_each_other():
    class MinibatchStd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.seen = torch.nn.Linear(3, 1), []

        def forward(self, x):
            self.seen.append(len(x))
            return self.last(torch.cat([x, x.std(0).mean().expand(len(x), 1)], 1)).flatten()

    gan = gp.GAN(small_gan().generator, MinibatchStd())
    gp.train(gp.TrainState(gan, config(steps=1)), Ring())
    assert set(gan.discriminator.seen) == {8}
    gan = gp.GAN(small_gan().generator, MinibatchStd())
    gan.discriminator.independent_samples = True
    gp.train(gp.TrainState(gan, config(steps=1)), Ring())
    assert set(gan.discriminator.seen) == {16, 8}


def test_a_rate_of_zero_is_a_rate():
    gan = small_gan()
    before = weights(gan)
    gp.train(gp.TrainState(gan, config(discriminator_learning_rate=0.0)), Ring())
    after = weights(gan)
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("discriminator"))
    assert not any(torch.equal(before[k], after[k]) for k in before if k.startswith("generator/layers"))


def test_integer_parameters_are_left_alone():
    class Permuted(torch.nn.Module):
        latent_dim = 3

        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(3, 2)
            self.order = torch.nn.Parameter(torch.tensor([1, 0]), requires_grad=False)

        def forward(self, z):
            return self.last(z)[:, self.order]

    gan = gp.GAN(Permuted(), small_gan().discriminator)
    gp.train(gp.TrainState(gan, config()), Ring())
    assert gan.generator_ema.order.tolist() == [1, 0]


def test_a_callback_may_stop_the_training_and_its_rows_are_saved(tmp_path):
    class Watch(gp.Callback):
        ended = 0

        def __call__(self, state):
            self.rows.append({"step": state.step})
            state.stop = state.step == 2

        def end(self, state):
            self.ended += 1

    watch = Watch()
    state = gp.train(gp.TrainState(small_gan(), config()), Ring(), [watch])
    assert state.step == 2 and watch.ended == 1
    state.save(tmp_path / "state")
    loaded, again = gp.TrainState.load(tmp_path / "state", "cpu"), Watch()
    gp.train(loaded, Ring(), [gp.every(1, again)])
    assert loaded.rows == {"Watch": [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4}]}
    assert again.rows is loaded.rows["Watch"]

    def fail(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gp.train(gp.TrainState(small_gan(), config()), Ring(), [watch, fail])
    assert watch.ended == 2
    with pytest.raises(ValueError, match="callbacks must have different names"):
        gp.train(gp.TrainState(small_gan(), config()), Ring(), [Watch(), Watch()])
    with pytest.raises(TypeError, match="callbacks must be functions of the state"):
        gp.train(gp.TrainState(small_gan(), config()), Ring(), [3])
    with pytest.raises(ValueError, match="network must be one of generator_ema, generator"):
        gp.Evaluate(None, network="ema")


def test_a_run_goes_on_from_its_file_if_there_is_one(tmp_path):
    path, started = tmp_path / "state.safetensors", []

    def start():
        started.append(True)
        return gp.TrainState(small_gan(), config())

    for steps in (0, 2, 4):
        state = gp.TrainState.resume(path, start, "cpu")
        assert state.step == steps
        gp.train(state, Ring(), [gp.training.Checkpoint(path)], until=steps + 2)
    assert len(started) == 1


def test_settings_of_other_types_can_be_saved_and_comes_back(tmp_path):
    given = {
        "steps": np.int64(3),
        "batch_size": np.int32(4),
        "learning_rate": np.float32(0.5),
        "weight_decay": torch.tensor(0.25),
        "seed": np.int64(3),
        "loss": gp.losses.get_loss("hinge"),
        "betas": [np.float64(0.0), torch.tensor(0.5)],
        "channels_last": np.bool_(True),
    }
    gp.TrainState(small_gan(), gp.TrainConfig(**given)).save(tmp_path / "state.safetensors")
    loaded = gp.TrainState.load(tmp_path / "state.safetensors", "cpu").config
    assert (loaded.steps, loaded.batch_size, loaded.seed, loaded.loss) == (3, 4, 3, "hinge")
    assert (loaded.learning_rate, loaded.weight_decay, loaded.betas) == (0.5, 0.25, (0.0, 0.5))
    assert loaded.channels_last is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        ({"learning_rate": -1}, r"learning_rate must be in \(0, inf\), got -1"),
        ({"learning_rate": float("nan")}, r"learning_rate must be in \(0, inf\), got nan"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"decay_from": 2}, r"decay_from must be in \[0, 1\], got 2"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of .*, got 'lbfgs'"),
        ({"penalty": "l1"}, "penalty must be one of .*, got 'l1'"),
        ({"precision": "float8"}, "precision must be one of .*, got 'float8'"),
        ({"clip": 0}, r"clip must be in \(0, inf\) or None, got 0"),
        ({"loss": "l2"}, "loss must be one of"),
        ({"penalty_weight": -5.0}, r"penalty_weight must be in \[0, inf\), got -5.0"),
        ({"penalty_weight": "10"}, "penalty_weight must be a number"),
        ({"penalty_every": 0}, "penalty_every must be"),
        ({"weight_decay": -1.0}, r"weight_decay must be in \[0, inf\), got -1.0"),
        ({"betas": (2.0, 3.0)}, r"betas must be in \[0, 1\), got 2.0"),
        ({"betas": (0.5,)}, "betas must be two numbers"),
        ({"seed": "x"}, "seed must be an integer of at least 0, got 'x'"),
        ({"channels_last": "yes"}, "channels_last must be one of"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        config(**changes)


def test_callbacks_run_in_order_and_on_time(data):
    calls = []

    class Late:
        order = 3

        def __call__(self, state):
            calls.append(("late", state.step))

    class Early(Late):
        order = 0

        def begin(self, state):
            calls.append(("begin", state.step))

        def __call__(self, state):
            calls.append(("early", state.step))

    gp.train(
        gp.TrainState(tiny(), config(steps=5)),
        data.train,
        [gp.every(2, Late()), gp.every(2, Early(), at_end=False)],
    )
    assert calls[0] == ("begin", 0)
    assert calls[1:] == [("early", 2), ("late", 2), ("early", 4), ("late", 4), ("late", 5)]
    with pytest.raises(ValueError, match="interval must be an integer of at least 1, got 0"):
        gp.every(0, Late())


def test_evaluation_during_training_changes_nothing(data):
    plain, watched = tiny(), tiny()
    gp.train(gp.TrainState(plain, config()), data.train)
    probe = gp.Evaluate(data.validation, samples=300, metrics=("fid",))
    gp.train(gp.TrainState(watched, config()), data.train, [gp.every(2, probe)])
    assert equal(weights(plain), weights(watched))
    assert [row["step"] for row in probe.rows] == [2, 4] and probe.rows[0]["digit_fid"] > 0


def test_one_code_path_for_points_and_colour_images():
    class Points:
        def batch(self, batch_size, seed, step):
            return gp.data.gaussian_ring(batch_size, gp.step_seed(seed, step))

    plane = gp.mlp_gan((2,), latent_dim=2, hidden=(8,), device="cpu")
    assert gp.train(gp.TrainState(plane, config()), Points()).step == 4
    images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    colour = gp.data.Split("train", images, torch.zeros(20, dtype=torch.int64), "noise")
    gan = gp.dcgan((3, 32, 32), width=2, device="cpu")
    assert gp.train(gp.TrainState(gan, config()), colour).step == 4
