"""The early bird is the first draw that agrees with its window, in a killed run too."""

import copy
import itertools
import os

import pytest
import torch
from tools.small_gans import Ring, weights
from tools.tickets import (
    Killed,
    config,
    differing,
    everything,
    kill_at,
    plane,
    train,
)

import ganprune as gp
from ganprune.lottery import (
    EarlyBird,
    Ticket,
    find_early_bird,
    shuffle_ticket,
)
from ganprune.masks.mask import pruned_count
from ganprune.masks.weights import weight_slots


def brute_force_draws(gan, settings, sparsity, every):
    """The masks of a run, drawn by sorting."""
    draws = []

    def draw(state):
        if state.step % every == 0:
            flat = torch.cat(
                [s.raw.detach().abs().flatten() for s in weight_slots(state.gan.generator).values()]
            )
            kept = torch.ones_like(flat, dtype=torch.bool)
            kept[flat.argsort(stable=True)[: pruned_count(sparsity, len(flat))]] = False
            draws.append(kept)

    train(gp.TrainState(copy.deepcopy(gan), settings), Ring(), [draw])
    return draws


def test_the_early_bird_is_the_first_draw_close_to_all_of_its_window():
    gan, settings = plane(), config(steps=40, learning_rate=0.005)
    draws = brute_force_draws(gan, settings, 0.6, 2)
    expected = [
        [float((draws[i] != draws[j]).float().mean()) for j in range(max(0, i - 3), i)]
        for i in range(len(draws))
    ]
    middle = sorted(max(row) for row in expected[3:])[len(draws) // 3]
    watcher = EarlyBird(sparsity=0.6, window=3, threshold=middle + 1e-9, every=2)
    plain = train(gp.TrainState(copy.deepcopy(gan), settings), Ring())
    watched = train(gp.TrainState(copy.deepcopy(gan), settings), Ring(), [watcher])
    assert differing(weights(plain.gan), weights(watched.gan)) == []
    assert [row["step"] for row in watcher.rows] == list(range(2, 41, 2))
    for row, distances in zip(watcher.rows, expected, strict=True):
        assert row["distances"] == pytest.approx(distances, abs=1e-6)
        assert row["max_distance"] == max(row["distances"], default=None)
    first = next(i for i, row in enumerate(expected) if len(row) == 3 and max(row) <= middle + 1e-9)
    assert watcher.found_step == 2 * (first + 1) > 8
    assert torch.equal(torch.cat([kept.flatten() for kept in watcher.mask.values()]), draws[first])
    assert f"found at step {watcher.found_step}" in repr(watcher)


def test_training_ends_where_the_early_bird_is_found_and_the_ticket_goes_on_there(tmp_path):
    gan, settings = plane(), config(steps=30)
    options = {"window": 2, "threshold": 0.2, "every": 3, "show_progress": False, "protect": "layers.output"}
    ticket, watcher = find_early_bird(gan, Ring(), settings, 0.5, **options)
    assert ticket.arm == "early-bird" and ticket.step == watcher.found_step == watcher.rows[-1]["step"] < 30
    assert (
        ticket.metadata["found_step"] == ticket.step
        and "layers.output.weight" not in ticket.masks["generator"]
    )
    watchers = [
        EarlyBird(network, sparsity=0.5, stop=stop, window=2, threshold=0.2, every=3)
        for network, stop in (("generator", False), ("discriminator", True))
    ]
    stopped = train(gp.TrainState(copy.deepcopy(gan), settings), Ring(), watchers)
    assert stopped.step == watchers[1].found_step < 30
    stopped.save(tmp_path / "state.safetensors")
    again = EarlyBird("discriminator", sparsity=0.5, stop=True, window=2, threshold=0.2, every=3)
    loaded = train(gp.TrainState.load(tmp_path / "state.safetensors", "cpu"), Ring(), [again])
    assert loaded.step == stopped.step and again.mask == watchers[1].mask and again.rows == watchers[1].rows
    ticket.save(tmp_path / "bird.safetensors")
    done = train(Ticket.load(tmp_path / "bird.safetensors", "cpu").start(), Ring())
    assert done.step == 30 and differing(everything(done), everything(train(ticket.start(), Ring()))) == []
    assert shuffle_ticket(ticket, 0).arm == "early-bird, shuffled"
    none, watcher = find_early_bird(gan, Ring(), config(), 0.5, **{**options, "window": 6, "every": 1})
    assert none is None and watcher.found_step is None and "not found yet" in repr(watcher)


def test_a_search_for_an_early_bird_stopped_at_any_write_goes_on_to_the_same_bird(tmp_path, monkeypatch):
    options = {"window": 2, "threshold": 0.2, "every": 2, "show_progress": False}

    def find(folder):
        settings = {"folder": folder, "checkpoint_every": 3, **options}
        return find_early_bird(plane(), Ring(), config(steps=20), 0.5, **settings)

    (straight, seen), replace = find(None), os.replace
    for number in itertools.count():
        kill_at(monkeypatch, number)
        try:
            find(tmp_path / str(number))
            break
        except Killed:
            monkeypatch.setattr(os, "replace", replace)
        resumed, watcher = find(tmp_path / str(number))
        assert watcher.rows == seen.rows and resumed.masks == straight.masks
        assert differing(everything(resumed.rewound), everything(straight.rewound)) == []
    assert number >= 3  # the record, a checkpoint, the state at the end


def test_bad_watchers_are_refused():
    for changes, message in (
        ({"network": "generator_ema"}, "network must be one of generator, discriminator"),
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"window": 0}, "window must be an integer of at least 1, got 0"),
        ({"every": 2.0}, "every must be an integer of at least 1, got 2.0"),
        ({"threshold": 0}, r"threshold must be in \(0, 1\], got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            EarlyBird(**changes)
    with pytest.raises(TypeError, match=r"threshold must be a number in \(0, 1\], got '0.1'"):
        EarlyBird(threshold="0.1")
    for number in (0, True):
        with pytest.raises(
            ValueError, match=f"checkpoint_every must be an integer of at least 1, got {number}"
        ):
            find_early_bird(plane(), Ring(), config(), 0.5, checkpoint_every=number)
