"""Tickets: exact counts, rewinding bit for bit, runs killed anywhere, controls, other data, early birds."""

import copy
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.small_gans import Ring, small_gan, weights
from tools.small_gans import config as short_config
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import ganprune as gp
from ganprune.core.files import OutputInUseError
from ganprune.core.tensors import CheckpointError, read_safetensors, write_safetensors
from ganprune.lottery import (
    REWINDINGS,
    EarlyBird,
    Ticket,
    draw_random_ticket,
    find_early_bird,
    find_tickets,
    reinitialise_ticket,
    shuffle_ticket,
    transfer_ticket,
)
from ganprune.masks.mask import Mask, MaskError, pruned_count
from ganprune.masks.weights import weight_slots


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


BOTH = ("generator", "discriminator")


# --- Counts and rewinding -------------------------------------------------------------------------


@pytest.mark.parametrize("rewind", REWINDINGS)
@pytest.mark.parametrize("networks", [("generator",), ("discriminator",), BOTH])
def test_each_round_prunes_exactly_and_within_the_last(rewind, networks):
    gan = plane()
    before = weights(gan)
    options = {"rewind": rewind, "rewind_step": 2 if rewind == "late" else None, "networks": networks}
    found = search(gan, Ring(), config(), 3, keep=0.7, **options)
    assert differing(before, weights(gan)) == [] and not gan.masks
    assert [one.number for one in found] == [0, 1, 2, 3]
    for number, one in enumerate(found):
        assert set(one.ticket.masks) == set(networks) and one.ticket.arm == "ticket"
        for name, mask in one.ticket.masks.items():
            assert mask.pruned == pruned_count(1 - 0.7**number, mask.total)
            gp.check_mask(one.state.gan.networks()[name], mask)
            if number:
                assert found[number - 1].ticket.masks[name].covers(mask)
                assert one.state.masks[name] == mask
        if "generator" in networks:
            gp.check_mask(one.state.gan.generator_ema, one.ticket.masks["generator"])
        assert set(one.state.masks) == (set(networks) if number else set())
        assert one.state.step == 6 and one.row["step"] == 6
        assert one.row["round"] == number and one.row["sparsity"] == one.ticket.sparsity
        assert one.row["kept"] == sum(mask.kept for mask in one.ticket.masks.values())
        assert all(one.row[f"{name}_sparsity"] == one.ticket.masks[name].sparsity for name in networks)
        assert one.row["generator_loss"] == one.state.history[-1]["generator_loss"]
        json.dumps(one.row)


def test_a_round_prunes_the_smallest_of_what_the_last_round_trained():
    found = search(plane(), Ring(), config(), 2, keep=0.6)
    for earlier, later in itertools.pairwise(found):
        slots = weight_slots(earlier.state.gan.generator)
        flat = torch.cat([slots[key].raw.detach().abs().flatten() for key in later.ticket.masks["generator"]])
        kept = torch.cat([mask.flatten() for mask in later.ticket.masks["generator"].values()])
        alive = torch.cat([mask.flatten() for mask in earlier.ticket.masks["generator"].values()])
        assert flat[kept].min() >= flat[alive & ~kept].max()


@pytest.mark.parametrize("network", ["mlp", "dcgan"])
@pytest.mark.parametrize("step", [0, 2])
def test_rewinding_restores_the_state_bit_for_bit(network, step):
    """Against states stopped by hand: everything is as it was, but for what is pruned."""
    gan, split = (plane(norm="none"), Ring()) if network == "mlp" else (images("batch"), Noise(1, 28, 28))
    settings, seen = config(log_every=3), {}

    def keep(state):
        if state.step == step:
            seen["then"] = copy.deepcopy(everything(state))

    twin = gp.TrainState(copy.deepcopy(gan), settings)
    keep(twin)
    train(twin, split, [keep])
    options = {"rewind": "late", "rewind_step": step} if step else {"rewind": "init"}
    one = search(gan, split, settings, 1, keep=0.5, networks=BOTH, **options)[1]
    state, then = one.ticket.start(), seen["then"]
    now = everything(state)
    slots = {name: weight_slots(state.gan.networks()[name]) for name in BOTH}
    masked = set()
    for name, mask in one.ticket.masks.items():
        for key, kept in mask.items():
            index = [id(p) for p in state.gan.networks()[name].parameters()].index(id(slots[name][key].raw))
            entries = [f"{name}/{key}", f"{name}/{index}/exp_avg", f"{name}/{index}/exp_avg_sq"]
            entries += ["generator_ema/" + key] if name == "generator" else []
            for entry in entries if step else [e for e in entries if "exp_avg" not in e]:
                assert torch.equal(now[entry], torch.where(kept, then[entry], 0.0)), entry
                assert not now[entry][~kept].signbit().any()
                masked.add(entry)
    assert len(masked) > 5
    for key, value in then.items():
        assert key in masked or torch.equal(now[key], value), key
    assert state.step == step and one.row["start_step"] == step


def test_the_power_iteration_belongs_to_the_masked_weights():
    one = search(plane(), Ring(), config(), 2, keep=0.4, networks="discriminator")[2]
    for slot in weight_slots(one.ticket.start().gan.discriminator).values():
        assert torch.linalg.matrix_norm(slot.effective(), 2) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("step", [0, 1, 3, 5])
@pytest.mark.parametrize("network", ["mlp", "dcgan"])
def test_a_dense_ticket_goes_on_as_if_nothing_had_happened(network, step):
    """Train to k, rewind there, train on: the data are replayed, and the run is the uninterrupted one."""
    gan, split = (plane(), Ring()) if network == "mlp" else (images(), Noise(1, 28, 28))
    straight = train(gp.TrainState(copy.deepcopy(gan), config()), split)
    options = {"rewind": "late", "rewind_step": step} if step else {}
    found = search(gan, split, config(), 1, **options, networks=BOTH)
    dense = found[0].ticket
    assert (dense.step, dense.sparsity) == (step, 0.0)
    assert differing(everything(straight), everything(train(dense.start(), split))) == []
    assert differing(everything(straight), everything(found[0].state)) == []


def test_what_callbacks_keep_in_the_state_is_rewound_too(tmp_path):
    """A running sum of the weights: it must go on from what it was at the rewound step, as the weights do."""

    def gather(state):
        total = sum(p.detach().double().sum() for p in state.gan.generator.parameters())
        state.extras["sum"] = state.extras.get("sum", torch.zeros((), dtype=torch.float64)) + total

    options = {"rewind": "late", "rewind_step": 2, "callbacks": [gather]}
    straight = train(gp.TrainState(plane(), config()), Ring(), [gather])
    found = search(plane(), Ring(), config(), 1, folder=tmp_path, **options)
    then = found[0].ticket.rewound.extras["sum"]
    for one in search(plane(), Ring(), config(), 1, folder=tmp_path, **options):  # loaded from the folder
        assert torch.equal(one.ticket.start().extras["sum"], then)
        again = train(one.ticket.start(), Ring(), [gather])
        assert torch.equal(again.extras["sum"], one.state.extras["sum"])
        assert torch.equal(one.ticket.rewound.extras["sum"], then)
    assert torch.equal(found[0].state.extras["sum"], straight.extras["sum"])
    assert not reinitialise_ticket(found[1].ticket, 0).start().extras


def test_a_ticket_trains_to_what_its_round_gave_and_stays_as_it_is():
    found = search(plane(), Ring(), config(), 2, rewind="late", rewind_step=2, networks=BOTH)
    for _ in range(2):
        assert differing(everything(found[2].state), everything(train(found[2].ticket.start(), Ring()))) == []


def test_what_the_caller_does_to_a_trained_state_changes_no_later_round():
    plain = search(plane(), Ring(), config(), 2, rewind="learning-rate")
    rounds = []
    for one in find_tickets(plane(), Ring(), config(), 2, rewind="learning-rate", show_progress=False):
        rounds.append(everything(one.state))
        with torch.no_grad():
            for parameter in one.state.gan.generator.parameters():
                parameter.fill_(1.0)
    assert all(differing(everything(a.state), b) == [] for a, b in zip(plain, rounds, strict=True))


# --- Learning-rate rewinding ----------------------------------------------------------------------


@pytest.mark.parametrize("step", [None, 2])
def test_learning_rate_rewinding_keeps_the_weights_and_replays_the_schedule(step):
    rates, settings = [], config(decay_from=0.5, learning_rate=0.01)

    def note(state):
        rates.append((state.step, [o.param_groups[0]["lr"] for o in state.optimizers.values()]))

    gan = plane(norm="none")
    options = {"rewind": "learning-rate", "rewind_step": step, "networks": BOTH}
    found = search(gan, Ring(), settings, 2, keep=0.5, callbacks=[note], **options)
    begin = step or 0
    expected = [0.01 * settings.learning_rate_factor(at) for at in range(6)]
    steps = [*range(6), *range(begin, 6), *range(begin, 6)]
    assert [at for at, _ in rates] == [at + 1 for at in steps]
    assert [pair for _, pair in rates] == [[expected[at]] * 2 for at in steps]
    for earlier, later in itertools.pairwise(found):
        trained, start = everything(earlier.state), later.ticket.start()
        assert start.step == begin and not start.history and not later.ticket.rewound.gan.masks
        now, masks = everything(start), later.ticket.masks
        for name in BOTH:
            for key, kept in masks[name].items():
                assert torch.equal(now[f"{name}/{key}"], torch.where(kept, trained[f"{name}/{key}"], 0.0))
            for key, entries in moments(start, name).items():
                before = moments(earlier.state, name)[key]
                for entry, was in zip(entries, before, strict=True):
                    assert torch.equal(entry, torch.where(masks[name][key], was, 0.0))
        assert torch.equal(now["generator/layers.output.bias"], trained["generator/layers.output.bias"])


def test_rewinding_the_learning_rate_needs_one_that_decays():
    with pytest.raises(ValueError, match=r"config.decay_from must be below 1 for rewind='learning-rate'"):
        find_tickets(plane(), Ring(), config(decay_from=1.0), 2, rewind="learning-rate")


# --- Killed and resumed ---------------------------------------------------------------------------


class Probe(gp.training.Callback):
    """A callback that measures something: the mean weight."""

    def __call__(self, state):
        total = sum(float(p.detach().double().sum()) for p in state.gan.generator.parameters())
        self.rows.append({"step": state.step, "total": total})


def kept_search(folder, rewind, networks=BOTH, extra=(), norm="spectral"):
    probe = Probe()
    options = {"late": {"rewind_step": 3}}.get(rewind, {})
    return search(
        plane(norm=norm),
        Ring(),
        config(),
        2,
        keep=0.6,
        rewind=rewind,
        networks=networks,
        folder=folder,
        checkpoint_every=2,
        callbacks=[gp.every(2, probe), *extra],
        **options,
    )


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


@pytest.mark.parametrize("rewind", ["late", "learning-rate"])
def test_a_run_stopped_at_any_write_goes_on_to_the_same_end(tmp_path, monkeypatch, rewind):
    """Before or after each replacement of a file, in every round: nothing else is ever on the disk."""
    straight = kept_search(tmp_path / "straight", rewind)
    same_rounds(straight, kept_search(None, rewind))
    replace, calls = os.replace, []

    def counting(source, target):
        calls.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", counting)
    kept_search(tmp_path / "counted", rewind)
    writes = list(calls)
    for name in ("run.json", "ticket-02.safetensors", "trained-02.safetensors"):
        assert name in writes
    for number in range(0, len(writes), 1 if rewind == "late" else 3):
        folder = tmp_path / str(number)
        kill_at(monkeypatch, number)
        with pytest.raises(Killed):
            kept_search(folder, rewind)
        monkeypatch.setattr(os, "replace", replace)
        same_rounds(straight, kept_search(folder, rewind))


def test_what_a_late_callback_measured_at_the_step_of_a_checkpoint_is_not_lost(tmp_path):
    class Late(Probe):
        order = 9  # after checkpoints of one's own

    steps = itertools.count(1)

    def leave(state):
        if next(steps) == 5:
            raise Killed

    straight = search(plane(), Ring(), config(), 1, callbacks=[Late()])
    options = {"folder": tmp_path, "checkpoint_every": 2}
    with pytest.raises(Killed):
        search(plane(), Ring(), config(), 1, callbacks=[Late(), leave], **options)
    same_rounds(straight, search(plane(), Ring(), config(), 1, callbacks=[Late()], **options))


SCRIPT = textwrap.dedent("""
    import os, signal, sys, torch
    sys.path.insert(0, sys.argv[1])
    import test_lottery as here
    torch.set_num_threads(1)
    steps = []
    def kill(state):
        steps.append(state.step)
        if len(steps) == 9:  # in the middle of round 1 or later, between two checkpoints
            os.kill(os.getpid(), signal.SIGKILL)
    here.kept_search(sys.argv[2], "late", extra=[kill])
""")


def test_a_killed_process_is_resumed_by_another(tmp_path):
    command = [sys.executable, "-c", SCRIPT, os.path.dirname(__file__), tmp_path / "run"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "trained-00.safetensors" in names and "trained-02.safetensors" not in names
    (tmp_path / "run" / ".state.safetensors.cut").write_bytes(b"half")
    same_rounds(kept_search(None, "late"), kept_search(tmp_path / "run", "late"))
    assert not list((tmp_path / "run").glob(".*"))


def test_a_finished_run_trains_nothing_again_and_may_be_made_longer(tmp_path):
    options = {"folder": tmp_path, "keep": 0.6}
    probe = Probe()
    first = search(plane(), Ring(), config(), 1, callbacks=[probe], **options)
    again = Probe()
    longer = search(plane(), Ring(), config(), 2, callbacks=[again], **options)
    same_rounds(first, longer[:2])
    assert (
        [row["step"] for row in again.rows]
        == [1, 2, 3, 4, 5, 6]
        == [row["step"] for row in longer[2].row["measured"]]
    )
    straight = search(plane(), Ring(), config(), 2, keep=0.6, callbacks=[Probe()])
    same_rounds(straight, longer)


def test_a_folder_of_another_run_is_refused(tmp_path):
    search(plane(), Ring(), config(), 1, folder=tmp_path)
    with pytest.raises(ValueError, match="holds a run with another keep, rewind, rewind_step; use another"):
        find_tickets(plane(), Ring(), config(), 1, keep=0.5, rewind="late", rewind_step=2, folder=tmp_path)
    with pytest.raises(ValueError, match="holds a run with another weights; use another"):
        find_tickets(plane(seed=1), Ring(), config(), 1, folder=tmp_path)
    with pytest.raises(ValueError, match="holds a run with another config; use another"):
        find_tickets(plane(), Ring(), config(steps=7), 1, folder=tmp_path)
    (tmp_path / "ticket-00.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has lost ticket-00.safetensors"):
        search(plane(), Ring(), config(), 1, folder=tmp_path)


def test_a_folder_that_is_none_or_damaged_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder must be a folder, got the file .*/file"):
        find_tickets(plane(), Ring(), config(), 1, folder=tmp_path / "file")
    for text, message in (('{"keep": 0.', "run.json is damaged"), ("[]", "run.json is no record of a run")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            find_tickets(plane(), Ring(), config(), 1, folder=tmp_path)


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    folder = tmp_path / "run"
    first = find_tickets(plane(), Ring(), config(), 1, folder=folder, show_progress=False)
    next(first)
    with pytest.raises(OutputInUseError, match="another run is writing to .*run"):
        search(plane(), Ring(), config(), 1, folder=folder)
    assert len(list(first)) == 1
    for _ in find_tickets(plane(), Ring(), config(), 1, folder=folder, show_progress=False):
        break  # who leaves the loop gives the folder back
    assert len(search(plane(), Ring(), config(), 1, folder=folder)) == 2


SECOND = """
import sys
sys.path.insert(0, sys.argv[1])
import test_lottery as here
here.search(here.plane(), here.Ring(), here.config(), 1, folder=sys.argv[2])
"""


def test_another_process_is_refused_and_leaves_the_run_as_it_is(tmp_path):
    """The second one must not take the first one's half-written files for what a kill has left."""
    folder = tmp_path / "run"
    first = find_tickets(plane(), Ring(), config(), 1, folder=folder, show_progress=False)
    next(first)
    (folder / ".trained-01.safetensors.half").write_bytes(b"being written")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [sys.executable, "-c", SECOND, os.path.dirname(__file__), folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "another run is writing to" in done.stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    first.close()


# --- Save and load --------------------------------------------------------------------------------


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


# --- Controls -------------------------------------------------------------------------------------


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


# --- Other data -----------------------------------------------------------------------------------


def test_a_ticket_moves_to_other_data_of_the_same_shape(found):
    moved = transfer_ticket(found.ticket, config=config(steps=4))
    assert moved.masks == found.ticket.masks and moved.step == 0
    assert differing(weights(moved.rewound.gan), weights(found.ticket.rewound.gan)) == []
    state = train(moved.start(), Square())
    assert state.step == 4
    gp.check_mask(state.gan.discriminator, found.ticket.masks["discriminator"])
    layers = list(found.ticket.masks["generator"])
    assert moved.metadata["transferred"]["generator"] == {"moved": layers, "dense": []}


def test_layers_of_another_shape_stay_dense_and_are_reported(tmp_path):
    ticket = search(
        images(),
        Noise(1, 28, 28),
        config(steps=2),
        1,
        keep=0.5,
        networks=BOTH,
        protect={"generator": ["layers.deconv1"]},
    )[1].ticket
    colour = gp.dcgan((3, 28, 28), width=2, latent_dim=4, seed=9, device="cpu")
    before = weights(colour)
    moved = transfer_ticket(ticket, colour)
    assert differing(before, weights(colour)) == []
    report = moved.metadata["transferred"]
    assert report["generator"]["dense"] == ["layers.deconv4.weight"]
    assert report["generator"]["moved"] == ["layers.deconv2.weight", "layers.deconv3.weight"]
    assert report["discriminator"]["dense"] == ["layers.conv1.weight"]
    assert list(moved.masks["generator"]) == list(ticket.masks["generator"])  # protected stays protected
    assert moved.masks["generator"]["layers.deconv4.weight"].all()
    assert moved.sparsity < ticket.sparsity
    now, was = weights(moved.rewound.gan), weights(ticket.rewound.gan)
    fresh = ("generator/layers.deconv4.", "generator_ema/layers.deconv4.", "discriminator/layers.conv1.")
    for key, value in now.items():
        assert torch.equal(value, (before if key.startswith(fresh) else was)[key]), key
    assert train(moved.start(), Noise(3, 28, 28)).step == 2
    moved.save(tmp_path / "moved.safetensors")
    assert Ticket.load(tmp_path / "moved.safetensors", "cpu").masks == moved.masks


def test_a_mask_never_moves_without_its_weights():
    """A layer that keeps fresh weights would be a control (re-initialised under the mask) by the name of a ticket."""

    def made(bias, seed):
        torch.manual_seed(seed)
        layers = [nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2, bias=bias)]
        generator = nn.Sequential(*layers)
        generator.latent_dim = 3
        return gp.GAN(generator, nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)))

    ticket = search(made(True, 0), Ring(), config(steps=2), 1, keep=0.5)[1].ticket
    other = made(False, 1)
    moved = transfer_ticket(ticket, other)
    assert moved.metadata["transferred"]["generator"] == {"moved": ["0.weight"], "dense": ["2.weight"]}
    now = weights(moved.rewound.gan)
    assert torch.equal(now["generator/0.weight"], ticket.rewound.gan.generator[0].weight)
    assert torch.equal(now["generator/2.weight"], other.generator[2].weight)
    assert moved.masks["generator"]["0.weight"].equal(ticket.masks["generator"]["0.weight"])
    assert moved.masks["generator"]["2.weight"].all()


def test_a_transfer_that_can_move_nothing_is_refused(found):
    other = gp.mlp_gan((2,), latent_dim=5, hidden=(7, 6), device="cpu")
    with pytest.raises(
        ValueError, match="gan must share a layer's name and shape with the ticket's generator"
    ):
        transfer_ticket(found.ticket, other)
    pruned = plane()
    gp.prune(pruned, 0.5)
    with pytest.raises(ValueError, match="gan must be dense, got one with masks of generator"):
        transfer_ticket(found.ticket, pruned)


# --- Networks that the package has not seen -------------------------------------------------------


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


@pytest.mark.parametrize("norm", [torch.nn.utils.spectral_norm, spectral_norm], ids=["hook", "parametrized"])
@pytest.mark.parametrize("rewind", REWINDINGS)
def test_tickets_of_networks_without_a_spec(norm, rewind):
    gan = own_gan(norm=norm)
    train(gp.TrainState(gan, config(steps=2)), Ring())
    gan.discriminator(torch.ones(3, 2))  # the older hook leaves a weight that hangs on its graph
    step = 4 if rewind == "late" else None
    options = {"rewind": rewind, "rewind_step": step, "networks": BOTH, "protect": {"generator": ["last"]}}
    one = search(gan, Ring(), config(), 2, keep=0.5, **options)[2]
    assert list(one.ticket.masks["generator"]) == ["first.weight", "inner.weight"]
    assert one.ticket.masks["generator"].sparsity == pytest.approx(0.75, abs=0.01)
    assert torch.equal(one.state.gan.generator.fixed.weight, gan.generator.fixed.weight)
    assert differing(everything(one.state), everything(train(one.ticket.start(), Ring()))) == []
    if rewind == "late":
        straight = train(gp.TrainState(copy.deepcopy(gan), config()), Ring())
        dense = search(gan, Ring(), config(), 1, **options)[0].ticket
        assert differing(everything(straight), everything(train(dense.start(), Ring()))) == []


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


@gp.networks.register_model_spec
@dataclasses.dataclass(frozen=True)
class OwnSpec:
    """A registered spec of the network above; the discriminator's is the package's."""

    latent_dim: int = 5

    def build(self):
        network = Own()
        network.spec = self
        return network


def test_a_registered_spec_of_ones_own_is_kept_and_resumed(tmp_path):
    gan = gp.GAN.from_spec(
        gp.networks.GANSpec(OwnSpec(), gp.networks.MLPDiscriminatorSpec((8,), (2,))), device="cpu"
    )
    steps = itertools.count(1)

    def leave(state):
        if next(steps) == 9:
            raise Killed

    options = {"folder": tmp_path, "checkpoint_every": 1}
    with pytest.raises(Killed):
        search(gan, Ring(), config(), 1, callbacks=[leave], **options)
    straight, resumed = search(gan, Ring(), config(), 1), search(gan, Ring(), config(), 1, **options)
    same_rounds(straight, resumed)
    assert train(reinitialise_ticket(resumed[1].ticket, 1).start(), Ring()).step == 6


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


# --- Scores, protection, bad arguments ------------------------------------------------------------


def test_a_score_of_ones_own_sees_the_trained_state():
    seen = []

    def of_the_average(state, network):
        seen.append((state.step, network, state.masks.get(network)))
        return gp.score(state.gan.generator_ema, "magnitude")

    found = search(plane(), Ring(), config(), 2, score=of_the_average, protect="layers.output")
    assert [(step, network) for step, network, _ in seen] == [(6, "generator")] * 2
    assert seen[0][2] is None and seen[1][2] == found[1].ticket.masks["generator"]
    ema = found[0].state.gan.generator_ema
    expected = gp.allocate(gp.score(ema, "magnitude", protect=["layers.output"]), 1 - 0.8)
    assert found[1].ticket.masks["generator"] == expected
    with pytest.raises(
        ValueError, match="score must give every prunable weight a number; it left out layers.lin"
    ):
        search(plane(), Ring(), config(), 1, score=lambda state, network: {})


@pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp", "per-output"])
def test_other_allocations_are_exact_and_nested_too(allocation):
    found = search(plane(), Ring(), config(), 2, keep=0.6, allocation=allocation, score="random")
    for earlier, later in itertools.pairwise(found):
        mask = later.ticket.masks["generator"]
        assert mask.pruned == pruned_count(1 - 0.6**later.number, mask.total)
        assert earlier.ticket.masks["generator"].covers(mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds must be an integer of at least 1, got 0"),
        ({"rounds": 1.5}, "rounds must be an integer of at least 1, got 1.5"),
        ({"checkpoint_every": 0}, "checkpoint_every must be an integer of at least 1, got 0"),
        ({"keep": 1.0}, r"keep must be in \(0, 1\), got 1.0"),
        ({"keep": float("nan")}, r"keep must be in \(0, 1\), got nan"),
        ({"rewind": "early"}, "rewind must be one of init, late, learning-rate, got 'early'"),
        ({"rewind": "late"}, r"rewind_step must be in \[1, 5\] for rewind='late', got None"),
        ({"rewind": "late", "rewind_step": 6}, r"rewind_step must be in \[1, 5\] for rewind='late', got 6"),
        ({"rewind": "late", "rewind_step": 0}, r"rewind_step must be in \[1, 5\] for rewind='late', got 0"),
        ({"rewind_step": 2}, r"rewind_step must be in \[0, 0\] for rewind='init', got 2"),
        ({"networks": ()}, "networks must name one or both of generator, discriminator, got"),
        ({"networks": ("generator", "generator")}, "networks must name one or both of"),
        ({"networks": "critic"}, "network must be one of generator, discriminator, got 'critic'"),
        ({"score": "snip"}, "score 'snip' needs loss_fn, which change as training goes on"),
        ({"score": "wanda"}, "score 'wanda' needs inputs, which change as training goes on"),
        ({"score": "weight"}, "score must be one of"),
        (
            {"allocation": "2:4"},
            "allocation must be one of global, uniform, erk, lamp, per-output, got '2:4'",
        ),
        ({"protect": ["layers.conv9"]}, "protect names layers.conv9, which is no prunable layer"),
        ({"protect": {"discriminator": []}}, "protect must be keyed by generator, got discriminator"),
    ],
)
def test_bad_arguments_are_refused_at_once(changes, message):
    arguments = {"rounds": 1, **changes}
    with pytest.raises(ValueError, match=message):
        find_tickets(plane(), Ring(), config(), **arguments)


def test_a_score_must_be_a_name_or_a_function_and_the_gan_dense():
    with pytest.raises(TypeError, match=r"score must be a name or a function of \(state, network\), got 3"):
        find_tickets(plane(), Ring(), config(), 1, score=3)
    for keep in ("0.8", True):
        with pytest.raises(TypeError, match=r"keep must be a number in \(0, 1\), got"):
            find_tickets(plane(), Ring(), config(), 1, keep=keep)
    pruned = plane()
    gp.prune(pruned, 0.5, which="discriminator")
    forgotten = plane()
    gp.prune(forgotten.discriminator, 0.5)
    for begin in (
        lambda gan: find_tickets(gan, Ring(), config(), 1),
        lambda gan: find_early_bird(gan, Ring(), config(), 0.5),
        lambda gan: transfer_ticket(Ticket({}, gp.TrainState(plane(), config())), gan),
    ):
        with pytest.raises(ValueError, match="gan must be dense, got one with masks of discriminator"):
            begin(pruned)
        with pytest.raises(MaskError, match="of the discriminator's weights are zero"):
            begin(forgotten)


# --- Early birds ----------------------------------------------------------------------------------


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
