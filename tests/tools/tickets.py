"""Small runs that search for tickets, what determines how they go on, and a way to kill them."""

import itertools
import json
import os

import torch
from torch import nn

import ganprune as gp
from ganprune.lottery import find_tickets
from ganprune.masks.weights import weight_slots
from tools.small_gans import Ring, small_gan, weights
from tools.small_gans import config as short_config

BOTH = ("generator", "discriminator")


class Square(Ring):
    """Other points of the plane."""

    def batch(self, batch_size, seed, step):
        return torch.rand(batch_size, 2, generator=gp.seeded(gp.step_seed(seed, step)))


class Noise:
    """Images of any shape."""

    def __init__(self, *shape):
        self.shape = shape

    def batch(self, batch_size, seed, step):
        return torch.rand(batch_size, *self.shape, generator=gp.seeded(gp.step_seed(seed, step))) * 2 - 1


def plane(norm="spectral", seed=0):
    return small_gan(norm=norm, seed=seed)


def images(norm="spectral", channels=1):
    return gp.dcgan((channels, 28, 28), width=2, latent_dim=4, norm=norm, device="cpu")


def config(**changes):
    return short_config(**{"steps": 6, "log_every": 4, **changes})


def search(gan, split, settings, rounds=2, **options):
    return list(find_tickets(gan, split, settings, rounds, show_progress=False, **options))


def train(state, split, callbacks=()):
    return gp.train(state, split, callbacks, show_progress=False)


def everything(state):
    """All that determines how a run goes on."""
    found = weights(state.gan)
    for name, optimizer in state.optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            found |= {f"{name}/{index}/{key}": value.clone() for key, value in entries.items()}
    found |= {f"mask/{name}/{key}": kept for name, mask in state.masks.items() for key, kept in mask.items()}
    found["step"] = torch.tensor(state.step)
    found["history"] = torch.tensor([list(row.values()) for row in state.history])
    rows = {name: rows for name, rows in state.rows.items() if rows}
    found["rows"] = torch.tensor(bytearray(json.dumps(rows).encode()))
    found |= {f"extra/{key}": value for key, value in state.extras.items()}
    found["pending"] = torch.stack(state.pending) if state.pending else torch.zeros(0)
    return found


def differing(first, second):
    assert first.keys() == second.keys()
    return [key for key, value in first.items() if not torch.equal(value, second[key])]


def moments(state, network):
    """Per prunable weight, the entries of the optimiser that have its shape."""
    return {
        key: [
            entry
            for entry in state.optimizers[network].state.get(slot.raw, {}).values()
            if entry.shape == slot.raw.shape
        ]
        for key, slot in weight_slots(state.gan.networks()[network]).items()
    }


class Probe(gp.training.Callback):
    """A callback that measures something: the mean weight."""

    def __call__(self, state):
        total = sum(float(p.detach().double().sum()) for p in state.gan.generator.parameters())
        self.rows.append({"step": state.step, "total": total})


def same_rounds(first, second):
    assert [one.row for one in first] == [one.row for one in second]
    for one, other in zip(first, second, strict=True):
        assert one.ticket.masks == other.ticket.masks and one.ticket.metadata == other.ticket.metadata
        assert differing(everything(one.state), everything(other.state)) == []
        assert differing(everything(one.ticket.rewound), everything(other.ticket.rewound)) == []


class Killed(BaseException):
    pass


def kill_at(monkeypatch, number):
    """Raises Killed at that replacement of a file: before it for odd numbers, after it for even ones."""
    replace, counter = os.replace, itertools.count()

    def killing(source, target):
        at = next(counter)
        if at == number and number % 2:
            raise Killed
        replace(source, target)
        if at == number:
            raise Killed

    monkeypatch.setattr(os, "replace", killing)


class Own(nn.Module):
    """Residual, with batch norm, a frozen layer, a buffer of its own, and no spec."""

    latent_dim = 5

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 2)
        self.norm = nn.BatchNorm1d(12)
        self.fixed = nn.Linear(12, 12).requires_grad_(False)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, z):
        self.calls += 1
        h = torch.relu(self.norm(self.first(z)))
        return self.last(h + torch.relu(self.inner(self.fixed(h))))


def own_gan(seed=0, norm=torch.nn.utils.spectral_norm):
    torch.manual_seed(seed)
    layers = [norm(nn.Linear(2, 12)), nn.LeakyReLU(0.2), norm(nn.Linear(12, 12)), nn.ReLU(), nn.Linear(12, 1)]
    return gp.GAN(Own(), nn.Sequential(*layers, nn.Flatten(0)))
