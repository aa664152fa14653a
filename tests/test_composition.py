"""Every mask holds through what loops are made of: compiling, norms, autocast, clipping, averages, resuming."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import ganprune as gp
from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import ALLOCATION_NAMES
from ganprune.masks.apply import apply_mask, check_mask
from ganprune.masks.keep import keep_mask
from ganprune.masks.mask import Mask
from ganprune.masks.weights import effective_weights, prunable_weights
from ganprune.scores.registry import SCORES, score


class Network(nn.Module):
    """8 × 8 images in, 3 numbers out; the widths are multiples of 4, and ReLU follows all but the last layer."""

    def __init__(self, norm: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        wrap = spectral_norm if norm == "spectral" else nn.Identity()
        self.layers = nn.Sequential(
            wrap(nn.Conv2d(4, 8, 3, padding=1)),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            wrap(nn.ConvTranspose2d(8, 4, 4, 2, 1)),
            nn.ReLU(),
            nn.Flatten(),
            wrap(nn.Linear(4 * 16 * 16, 3)),
        )

    def forward(self, x):
        return self.layers(x)


def batch(seed):
    return torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def loss_fn(model):
    yield from (model(batch(100 + number)).square().mean() for number in range(2))


def made_by(name, model):
    """A mask by the allocation, score or amount of that name."""
    if name in ALLOCATION_NAMES:
        return allocate(score(model, "magnitude"), None if ":" in name else 0.6, name)
    if name == "threshold":
        return allocate(score(model, "magnitude"), threshold=0.02)
    if name == "layer sparsity":
        return allocate(score(model, "magnitude"), layer_sparsity={"layers.0": 0.5, "layers.6": 0.9})
    if name == "protected":
        return allocate(score(model, "magnitude", protect=["layers.3"]), 0.6)
    if name == "shuffled":
        return made_by("global", model).shuffled(1)
    if name == "channels":
        mask = dict(Mask.dense(model))
        mask["layers.0.weight"][:3] = False  # what makes a channel, and what reads it
        mask["layers.3.weight"][:3] = False
        mask["layers.3.weight"][:, 2:] = False
        mask["layers.6.weight"][:, 2 * 16 * 16 :] = False
        return Mask(mask)
    found = score(model, name.removeprefix("score "), loss_fn, batch(7), sparsity=0.6, protect=["layers.6"])
    return allocate(found, 0.6)


AMOUNTS = ("threshold", "layer sparsity", "protected", "shuffled", "channels")
MASKS = (*ALLOCATION_NAMES, *AMOUNTS, *(f"score {name}" for name in sorted(SCORES)))


def own_loop(forward, model, ema, optimizer, steps, after_step):
    """A loop as a reader writes it: autocast, clipping by norm, a moving average; it knows nothing of masks."""
    for step in steps:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(batch(step)).float().square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 0.1)
        after_step()


def parts(norm, seed=0):
    model = Network(norm, seed)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    return model, ema, torch.optim.Adam(model.parameters(), 0.01)


@pytest.mark.parametrize("norm", ["none", "spectral"])
@pytest.mark.parametrize("name", MASKS)
def test_every_mask_in_a_loop_of_ones_own_that_is_stopped_and_resumed(name, norm):
    model, ema, optimizer = parts(norm)
    mask = made_by(name, model)
    assert 0.2 < mask.sparsity < 0.95
    twin, twin_ema, twin_optimizer = parts(norm, seed=1)

    def holds():
        check_mask(model, mask)
        check_mask(ema, mask)
        for key, weight in effective_weights(model).items():
            if key in mask:
                assert not weight[~mask[key]].any()

    start = {key: weight.detach().clone() for key, weight in prunable_weights(model).items()}
    with keep_mask(model, mask, optimizer, ema=ema):
        own_loop(model, model, ema, optimizer, range(2), holds)
        stored = io.BytesIO()
        state = {"model": model, "ema": ema, "optimizer": optimizer}
        torch.save({**{k: v.state_dict() for k, v in state.items()}, "mask": dict(mask)}, stored)
        own_loop(model, model, ema, optimizer, range(2, 4), holds)
    for key, kept in mask.items():
        assert not torch.equal(prunable_weights(model)[key][kept], start[key][kept])
    stored.seek(0)
    loaded = torch.load(stored, weights_only=True)
    twin.load_state_dict(loaded["model"])
    twin_ema.load_state_dict(loaded["ema"])
    twin_optimizer.load_state_dict(loaded["optimizer"])
    held = Mask(loaded["mask"])
    assert held == mask
    with keep_mask(twin, held, twin_optimizer, ema=twin_ema) as keeper:
        own_loop(twin, twin, twin_ema, twin_optimizer, range(2, 4), keeper.check)
    for network, other in ((model, twin), (ema, twin_ema)):
        for key, value in network.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("name", ["global", "channels"])
@pytest.mark.parametrize("norm", ["none", "spectral"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_under_everything_else(backend, norm, name):
    model, ema, optimizer = parts(norm)
    mask = made_by(name, model)
    compiled = torch.compile(model, backend=backend)
    with keep_mask(compiled, mask, optimizer, ema=ema) as keeper:
        own_loop(compiled, model, ema, optimizer, range(2), keeper.check)
        plain = model(batch(9))
        assert torch.allclose(compiled(batch(9)), plain, atol=1e-2)  # it sees the zeros of after the step
        other = mask.shuffled(2)
        keeper.update(other)  # in place: the compiled graph is the same, and sees the new zeros
        own_loop(compiled, model, ema, optimizer, range(2, 4), keeper.check)
    check_mask(model, other)
    check_mask(ema, other)
    check_mask(compiled, other)


def test_a_moving_average_by_torch():
    model, _, optimizer = parts("none")
    mask = made_by("erk", model)
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    with keep_mask(model, mask, optimizer, ema=averaged) as keeper:
        own_loop(
            model, model, copy.deepcopy(model), optimizer, range(3), lambda: averaged.update_parameters(model)
        )
        keeper.check()
    check_mask(averaged.module, mask)


@pytest.mark.parametrize("norm", ["spectral", "batch", "none"])
def test_masks_on_both_networks_through_the_loop_its_checkpoint_and_a_copy(norm, tmp_path):
    data = gp.mnist("cpu")
    gan = gp.dcgan(width=4, latent_dim=8, norm=norm, device="cpu")
    masks = {
        "generator": allocate(score(gan.generator, "magnitude"), 0.8, "erk"),
        "discriminator": allocate(score(gan.discriminator, "magnitude"), 0.7, "lamp"),
    }
    config = gp.TrainConfig(steps=4, batch_size=4, loss="non-saturating", precision="bfloat16")
    gan.masks.update(masks)
    state = gp.TrainState(gan, config)

    def save(state):
        for name, mask in masks.items():
            state.gan.masks.keeper(name).check()
            check_mask(state.gan.networks()[name], mask)
        if state.step == 2:
            state.save(tmp_path / "state.safetensors")

    gp.train(state, data.train, [save], show_progress=False)
    resumed = gp.TrainState.load(tmp_path / "state.safetensors", "cpu")
    assert resumed.masks == masks
    gp.train(resumed, data.train, show_progress=False)
    for name, network in state.gan.networks().items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, resumed.gan.networks()[name].state_dict()[key]), (name, key)
    twin = copy.deepcopy(state.gan)
    check_mask(twin.generator_ema, masks["generator"])
    gp.save(tmp_path / "gan.safetensors", twin)
    loaded = gp.load(tmp_path / "gan.safetensors", "cpu")
    assert loaded.masks["generator"] == masks["generator"]
    check_mask(loaded.generator_ema, masks["generator"])
    assert loaded.masks["discriminator"] == masks["discriminator"]


def test_a_step_that_a_gradient_scaler_leaves_out_leaves_the_mask():
    model, ema, optimizer = parts("none")
    mask = made_by("uniform", model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with keep_mask(model, mask, optimizer, ema=ema) as keeper:
        for step in range(3):
            optimizer.zero_grad()
            loss = model(batch(step)).square().mean()
            if step == 1:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            keeper.check()
    assert scaler.get_scale() < 4.0


def test_a_mask_moves_with_half_precision_and_back():
    model, _, _ = parts("none")
    mask = made_by("global", model)
    apply_mask(model, mask)
    model.to(torch.bfloat16)
    check_mask(model, mask)
    check_mask(model.float(), mask)
