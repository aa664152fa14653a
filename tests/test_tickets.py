"""Tickets: saved, loaded, trained by other settings, moved to other data."""

import pytest
import torch
from tools.small_gans import Ring, small_gan, weights
from tools.tickets import (
    BOTH,
    Noise,
    config,
    differing,
    everything,
    images,
    plane,
    search,
    train,
)

import ganprune as gp
from ganprune.core.tensors import CheckpointError, read_safetensors, write_safetensors
from ganprune.lottery import (
    REWINDINGS,
    Ticket,
    draw_random_ticket,
    reinitialise_ticket,
    shuffle_ticket,
)
from ganprune.masks.mask import Mask


@pytest.fixture(scope="module")
def found():
    """A late ticket of both networks, at 1 − 0.5²."""
    options = {"keep": 0.5, "rewind": "late", "rewind_step": 2, "networks": BOTH}
    return search(plane(), Ring(), config(), 2, **options)[2]


@pytest.mark.parametrize("rewind", REWINDINGS)
@pytest.mark.parametrize("network", ["mlp", "dcgan"])
def test_a_loaded_ticket_trains_to_the_same_weights(tmp_path, network, rewind):
    gan, split = (plane(), Ring()) if network == "mlp" else (images(), Noise(1, 28, 28))
    step = 3 if rewind == "late" else None
    one = search(gan, split, config(), 1, rewind=rewind, rewind_step=step, networks=BOTH)[1]
    one.ticket.save(tmp_path / "deep" / "ticket.safetensors")
    loaded = Ticket.load(tmp_path / "deep" / "ticket.safetensors", "cpu")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["ticket.safetensors"]
    assert loaded.masks == one.ticket.masks and list(loaded.masks["generator"]) == list(
        one.ticket.masks["generator"]
    )
    assert (loaded.arm, loaded.metadata) == (one.ticket.arm, one.ticket.metadata)
    assert repr(loaded) == repr(one.ticket) and "generator sparsity 0.2" in repr(loaded)
    assert differing(everything(train(loaded.start(), split)), everything(one.state)) == []
    dense = gp.TrainState.load(
        tmp_path / "deep" / "ticket.safetensors", "cpu"
    )  # the file of its rewound state too
    assert differing(weights(dense.gan), weights(loaded.rewound.gan)) == []


def test_files_that_hold_no_ticket_are_refused(tmp_path):
    gp.TrainState(plane(), config()).save(tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no ticket; use load\(\) or TrainState.load\(\)"):
        Ticket.load(tmp_path / "state.safetensors", "cpu")
    with pytest.raises(CheckpointError, match="checkpoint not found"):
        Ticket.load(tmp_path / "none.safetensors", "cpu")
    (tmp_path / "cut.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        Ticket.load(tmp_path / "cut.safetensors", "cpu")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ticket/generator/layers.strange.weight", torch.ones(2, dtype=torch.bool)),  # was left out silently
        ("ticket/critic/layers.output.weight", torch.ones(2, dtype=torch.bool)),
        ("ticket/generator/layers.output.weight", torch.ones(2, dtype=torch.bool)),
        ("ticket/generator/layers.output.weight", torch.ones(2, 12)),
    ],
)
def test_a_ticket_that_does_not_fit_its_own_networks_is_refused(tmp_path, name, value):
    path = tmp_path / "ticket.safetensors"
    Ticket({"generator": Mask.dense(plane().generator)}, gp.TrainState(plane(), config())).save(path)
    tensors, metadata = read_safetensors(path)
    write_safetensors(path, {**tensors, name: value}, metadata)
    with pytest.raises(CheckpointError, match="holds a ticket that does not fit its networks"):
        Ticket.load(path, "cpu")


@pytest.mark.parametrize("channels_last", [True, False])
def test_moments_take_the_memory_layout_of_the_run(channels_last):
    """A fused optimiser goes through weights and moments in the order of memory: other orders mix up weights."""
    made = config(channels_last=not channels_last)
    ticket = search(images(), Noise(1, 28, 28), made, 1, rewind="late", rewind_step=3)[1].ticket
    expected, state = ticket.start(made), ticket.start(config(channels_last=channels_last))
    for name, optimizer in state.optimizers.items():
        twins = expected.optimizers[name].state.values()
        for (weight, entries), others in zip(optimizer.state.items(), twins, strict=True):
            for key in ("exp_avg", "exp_avg_sq"):
                assert entries[key].stride() == weight.stride() and torch.equal(entries[key], others[key])


def test_a_ticket_may_be_trained_by_another_config():
    ticket = search(plane(), Ring(), config(), 1, rewind="late", rewind_step=3)[1].ticket
    state = ticket.start(config(steps=9, learning_rate=0.5, betas=(0.9, 0.99)))
    group = state.optimizers["generator"].param_groups[0]
    assert (group["initial_lr"], group["betas"], state.step) == (0.5, (0.9, 0.99), 3)
    assert train(state, Ring()).step == 9
    with pytest.raises(ValueError, match="config.steps must be above the ticket's step, 3, got 3"):
        ticket.start(config(steps=3))
    with pytest.raises(ValueError, match="config.optimizer must be 'adam', .* got 'sgd'"):
        ticket.start(config(optimizer="sgd"))
    assert search(plane(), Ring(), config(), 1)[1].ticket.start(config(optimizer="sgd")).step == 0


def test_a_ticket_must_fit_its_networks():
    rewound = gp.TrainState(plane(), config())
    mask = Mask.dense(plane().generator)
    with pytest.raises(
        ValueError, match="network must be one of generator, discriminator, got 'generator_ema'"
    ):
        Ticket({"generator_ema": mask}, rewound)
    with pytest.raises(ValueError, match="mask does not fit the discriminator: layers.linear1.weight has"):
        Ticket({"discriminator": mask}, rewound)
    with pytest.raises(TypeError, match="mask must be a Mask, got dict"):
        Ticket({"generator": dict(mask)}, rewound)
    empty = {key: torch.zeros_like(kept) for key, kept in Mask.dense(plane().discriminator).items()}
    with pytest.raises(
        ValueError, match="empties what a norm divides by its length in layers.linear1.weight"
    ):
        Ticket({"discriminator": Mask(empty)}, rewound)


def test_the_order_of_layers_and_with_it_every_control_survives_saving(tmp_path):
    """Files sort layers by name, where linear10 comes before linear2."""
    gan = small_gan(hidden=(4,) * 11)
    mask = gp.allocate(gp.score(gan.generator, "magnitude"), 0.5)
    ticket = Ticket({"generator": mask}, gp.TrainState(gan, config()))
    ticket.save(tmp_path / "ticket.safetensors")
    loaded = Ticket.load(tmp_path / "ticket.safetensors", "cpu")
    assert list(loaded.masks["generator"]) == list(mask) != sorted(mask)
    for control in (shuffle_ticket, draw_random_ticket, reinitialise_ticket):
        made, again = control(ticket, 3), control(loaded, 3)
        assert (
            made.masks == again.masks
            and differing(weights(made.rewound.gan), weights(again.rewound.gan)) == []
        )
