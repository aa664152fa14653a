"""Controls of tickets keep what their names say, and change the rest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.small_gans import Ring, weights
from tools.tickets import (
    BOTH,
    config,
    differing,
    everything,
    own_gan,
    plane,
    search,
    train,
)
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import ganprune as gp
from ganprune.core.tensors import CheckpointError
from ganprune.lottery import (
    Ticket,
    draw_random_ticket,
    find_tickets,
    reinitialise_ticket,
    shuffle_ticket,
)
from ganprune.masks.mask import Mask
from ganprune.masks.weights import weight_slots


@pytest.fixture(scope="module")
def found():
    """A late ticket of both networks, at 1 − 0.5²."""
    options = {"keep": 0.5, "rewind": "late", "rewind_step": 2, "networks": BOTH}
    return search(plane(), Ring(), config(), 2, **options)[2]


def test_reinitialised_weights_are_fresh_under_the_same_masks(found):
    ticket = found.ticket
    control = reinitialise_ticket(ticket, seed=0)
    assert (
        control.masks == ticket.masks and control.arm == "reinitialised" and control.step == ticket.step == 2
    )
    assert control.metadata == {**ticket.metadata, "reinitialised seed": 0}
    was, now = weights(ticket.rewound.gan), weights(control.rewound.gan)
    unlike = differing(was, now)
    assert all(key in unlike for key in was if key.endswith(("weight", "original", "bias")))
    assert differing(now, weights(plane(seed=0))) and differing(
        now, weights(reinitialise_ticket(ticket, 1).rewound.gan)
    )
    assert differing(now, weights(reinitialise_ticket(ticket, 0).rewound.gan)) == []
    for key in now:  # the same distribution: uniform within 1 / sqrt(inputs)
        if key.startswith("generator/") and key.endswith("weight"):
            assert now[key].abs().max() <= now[key].shape[1] ** -0.5
            assert now[key].std() == pytest.approx((3 * now[key].shape[1]) ** -0.5, rel=0.35)
    assert torch.equal(now["generator_ema/layers.output.bias"], now["generator/layers.output.bias"])
    state = control.start()
    assert not any(state.optimizers[name].state for name in BOTH) and not state.history
    gp.check_mask(train(state, Ring()).gan.generator, ticket.masks["generator"])


@pytest.mark.parametrize("network", BOTH)
def test_one_network_alone_can_be_reinitialised(found, network):
    control = reinitialise_ticket(found.ticket, 3, networks=network)
    was, now = weights(found.ticket.rewound.gan), weights(control.rewound.gan)
    other = BOTH[1 - BOTH.index(network)]
    assert {key.split("/")[0].removesuffix("_ema") for key in differing(was, now)} == {network}
    state = control.start()
    assert state.optimizers[other].state and not state.optimizers[network].state
    train(state, Ring())


def test_shuffled_masks_keep_the_counts_of_each_layer(found):
    ticket = found.ticket
    control = shuffle_ticket(ticket, seed=1)
    assert control.arm == "shuffled" and control.metadata["shuffled seed"] == 1
    assert differing(everything(ticket.rewound), everything(control.rewound)) == []
    for name in BOTH:
        assert control.masks[name].layers() == ticket.masks[name].layers()
        assert control.masks[name] != ticket.masks[name]
    assert shuffle_ticket(ticket, 1).masks == control.masks != shuffle_ticket(ticket, 2).masks
    for name, mask in control.masks.items():  # weights come back that the ticket had pruned
        start = control.start()
        for key, slot in weight_slots(start.gan.networks()[name]).items():
            revived = mask[key] & ~ticket.masks[name][key]
            assert revived.any() and (slot.raw.detach()[revived] != 0).all()
    train(control.start(), Ring())


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_random_masks_keep_the_sparsity_alone(found, allocation):
    ticket = found.ticket
    control = draw_random_ticket(ticket, seed=4, allocation=allocation)
    assert control.arm == "random mask"
    assert control.metadata == {
        **ticket.metadata,
        "random mask seed": 4,
        "random mask allocation": allocation,
    }
    for name, mask in control.masks.items():
        assert mask.kept == ticket.masks[name].kept and list(mask) == list(ticket.masks[name])
        assert 0.1 < mask.distance(ticket.masks[name]) < 0.6
    assert control.masks != draw_random_ticket(ticket, 5, allocation).masks
    assert differing(everything(ticket.rewound), everything(control.rewound)) == []


def test_controls_combine_and_are_saved(found, tmp_path):
    control = shuffle_ticket(reinitialise_ticket(found.ticket, 1), 2)
    assert control.arm == "reinitialised, shuffled"
    control.save(tmp_path / "control.safetensors")
    loaded = Ticket.load(tmp_path / "control.safetensors", "cpu")
    assert (loaded.arm, loaded.metadata) == (control.arm, control.metadata)
    assert (
        differing(everything(train(loaded.start(), Ring())), everything(train(control.start(), Ring()))) == []
    )


def test_controls_that_need_pruned_weights_refuse_learning_rate_rewinding():
    ticket = search(plane(), Ring(), config(), 1, rewind="learning-rate")[1].ticket
    for control in (shuffle_ticket, draw_random_ticket):
        with pytest.raises(ValueError, match="ticket must come from rewinding to init or late"):
            control(ticket, 0)
    assert reinitialise_ticket(ticket, 0).masks == ticket.masks


@settings(max_examples=15)
@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    sparsity=st.floats(0, 0.9),
    seed=st.integers(0, 2**63),
)
def test_controls_keep_the_counts_of_any_ticket(hidden, sparsity, seed):
    gan = gp.mlp_gan((2,), latent_dim=3, hidden=tuple(hidden), device="cpu")
    mask = gp.allocate(gp.score(gan.generator, "magnitude"), sparsity)
    ticket = Ticket({"generator": mask}, gp.TrainState(gan, config()))
    assert shuffle_ticket(ticket, seed).masks["generator"].layers() == mask.layers()
    assert draw_random_ticket(ticket, seed).kept == ticket.kept == mask.kept
    assert reinitialise_ticket(ticket, seed).masks["generator"] == mask


def test_networks_without_a_spec_need_a_factory_and_cannot_be_kept(tmp_path):
    ticket = search(own_gan(), Ring(), config(), 1)[1].ticket
    with pytest.raises(CheckpointError, match=r"the generator \(Own\) has no spec"):
        ticket.save(tmp_path / "ticket.safetensors")
    with pytest.raises(CheckpointError, match=r"the generator \(Own\) has no spec"):
        find_tickets(own_gan(), Ring(), config(), 1, folder=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="the generator and the discriminator has no spec; pass a factory"):
        reinitialise_ticket(ticket, 0)
    with pytest.raises(ValueError, match="factory must make networks like the ticket's, but its generator"):
        reinitialise_ticket(ticket, 0, factory=lambda seed: plane())
    control = reinitialise_ticket(ticket, 0, factory=own_gan)
    assert differing(weights(control.rewound.gan), weights(ticket.rewound.gan))
    assert train(control.start(), Ring()).step == 6
    assert train(shuffle_ticket(ticket, 0).start(), Ring()).step == 6


def test_an_output_under_weight_norm_is_never_emptied():
    torch.manual_seed(0)
    discriminator = nn.Sequential(weight_norm(nn.Linear(2, 6)), nn.ReLU(), nn.Linear(6, 1), nn.Flatten(0))
    gan = gp.GAN(plane().generator, discriminator)
    kept = torch.zeros(6, 2, dtype=torch.bool)
    kept[:, 0] = True
    ticket = Ticket({"discriminator": Mask({"0.weight": kept})}, gp.TrainState(gan, config()))
    with pytest.raises(ValueError, match="empties what a norm divides by its length in 0.weight"):
        for seed in range(20):
            shuffle_ticket(ticket, seed)
