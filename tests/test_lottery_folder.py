"""Runs in a folder: killed anywhere they go on to the same end, and a folder has one owner."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from tools.small_gans import Ring
from tools.tickets import (
    BOTH,
    Killed,
    Own,
    Probe,
    config,
    kill_at,
    plane,
    same_rounds,
    search,
    train,
)

import ganprune as gp
from ganprune.core.files import OutputInUseError
from ganprune.core.tensors import CheckpointError
from ganprune.lottery import (
    find_tickets,
    reinitialise_ticket,
)


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
    import test_lottery_folder as here
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


@pytest.mark.parametrize("rewind", ["init", "late"])
def test_a_gan_with_zeros_that_was_said_to_be_dense_may_be_kept(tmp_path, rewind):
    """Its zeros belong to no mask, on the first call as on the next."""
    gan, step = plane(), 1 if rewind == "late" else None
    gp.prune(gan, 0.5)
    gan.masks.clear()
    options = {"rewind": rewind, "rewind_step": step}
    straight = search(gan, Ring(), config(learning_rate=1e-30), 1, **options)
    for _ in range(2):
        same_rounds(straight, search(gan, Ring(), config(learning_rate=1e-30), 1, folder=tmp_path, **options))


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    folder = tmp_path / "run"
    first = find_tickets(plane(), Ring(), config(), 1, folder=folder, show_progress=False)
    next(first)
    with pytest.raises(OutputInUseError, match="another run .*is writing to .*run"):
        search(plane(), Ring(), config(), 1, folder=folder)
    assert len(list(first)) == 1
    for _ in find_tickets(plane(), Ring(), config(), 1, folder=folder, show_progress=False):
        break  # who leaves the loop gives the folder back
    assert len(search(plane(), Ring(), config(), 1, folder=folder)) == 2


SECOND = """
import sys
sys.path.insert(0, sys.argv[1])
import test_lottery_folder as here
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
    assert done.returncode == 1 and "is writing to" in done.stderr.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    first.close()


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
