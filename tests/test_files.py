"""Files are whole or absent, outputs have one owner, and the cache folder can be named."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tools.small_gans import small_gan

import ganprune as gp
from ganprune.core.files import CacheError, OutputInUseError, cache_dir, owned, replacing, unfinished
from ganprune.core.tensors import read_safetensors, write_safetensors


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


WRITERS = {
    "gp.save": lambda path: gp.save(path, small_gan()),
    "gp.inference.save_sparse": lambda path: gp.inference.save_sparse(path, small_gan().generator),
    "TrainState.save": lambda path: gp.TrainState(small_gan(), gp.TrainConfig(steps=1)).save(path),
    "write_safetensors": lambda path: write_safetensors(path, {"a": torch.ones(1)}, {}),
    "gp.records.append": lambda path: gp.records.append(path, {"a": 1}),
    "owned": lambda path: owned(path).__enter__(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_missing_folders_are_made_and_one_that_cannot_be_made_is_named(tmp_path, name):
    path = tmp_path / "two" / "folders" / "file"
    WRITERS[name](path)
    assert path.parent.is_dir()
    (tmp_path / "file").touch()
    for inside, folder in (("file/a", "file"), ("file/b/a", "file/b")):
        with pytest.raises(OSError, match=rf"the folder {tmp_path / folder} cannot be made \(.*\)$"):
            WRITERS[name](tmp_path / inside)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_that_the_umask_gives_and_an_old_one_keeps_its_own(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_safetensors(tmp_path / "new", {"a": torch.ones(1)}, {})
        (tmp_path / "plain").write_text("")
        (tmp_path / "old").write_text("old")
        (tmp_path / "old").chmod(0o640)
        write_safetensors(tmp_path / "old", {"a": torch.ones(1)}, {})
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == mode(tmp_path / "plain") == 0o666 & ~mask
    assert mode(tmp_path / "old") == 0o640


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "real", tmp_path / "link"
    (tmp_path / "middle").symlink_to(target)
    link.symlink_to("middle")
    for content in ("made", "made again"):  # at first the target does not exist
        with replacing(link) as temporary:
            assert temporary.parent == target.parent  # the same disk, so that it is replaced in one step
            temporary.write_text(content)
        assert link.is_symlink() and target.read_text() == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "link", "middle", "real"]


def test_folders_devices_and_pipes_are_refused_before_anything_is_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null")):
        for use, what in ((replacing, "a file to write"), (owned, "a file or a folder")):
            with (
                pytest.raises(ValueError, match=f"path must be {what}, got .* is a device or a pipe"),
                use(path),
            ):
                raise AssertionError("never reached")
    with pytest.raises(ValueError, match="path must be a file to write, .* is a folder"), replacing(tmp_path):
        raise AssertionError("never reached")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


@pytest.mark.parametrize("name", ["run", "run.0", "run.1", "run.safetensors", "run.0.safetensors", ".run"])
def test_no_two_outputs_share_their_unfinished_file(tmp_path, name):
    others = {"run", "run.0", "run.1", "run.safetensors", "run.0.safetensors", ".run"} - {name}
    assert unfinished(tmp_path / name) not in {unfinished(tmp_path / other) for other in others}
    (tmp_path / "link").symlink_to(name)
    assert unfinished(tmp_path / "link") == unfinished(tmp_path / name)
    with pytest.raises(ValueError, match="path must not end with .unfinished, which marks unfinished runs"):
        unfinished(unfinished(tmp_path / name))


def test_an_output_has_one_owner_at_a_time(tmp_path):
    path = tmp_path / "new" / "run"
    (tmp_path / "link").symlink_to(path)
    with owned(path), owned(tmp_path / "other"):
        for same in (path, tmp_path / "link", tmp_path / "new" / ".." / "new" / "run"):
            message = "another run .*is writing to .*choose another output"
            with pytest.raises(OutputInUseError, match=message), owned(same):
                raise AssertionError("never reached")
    with pytest.raises(ZeroDivisionError), owned(path):
        raise ZeroDivisionError
    with owned(path):  # free again, also after an error
        pass
    path.mkdir()
    with owned(path):  # a folder has an owner as well
        assert list(path.iterdir()) == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["link", "new", "run"]


def test_long_names_are_names_like_others(tmp_path):
    name = 80 * "長"  # 240 of the 255 bytes that a name may have
    with (
        owned(tmp_path / f"{name}1"),
        owned(tmp_path / f"{name}2"),
        replacing(tmp_path / f"{name}1") as temporary,
    ):
        temporary.write_text("whole")
    assert (tmp_path / f"{name}1").read_text() == "whole"


HOLD = """
import sys, time
from ganprune.core.files import owned
with owned(sys.argv[1]):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_another_process_is_refused_and_a_dead_one_does_not_block(tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "mine\n"
        with pytest.raises(OutputInUseError), owned(path):
            raise AssertionError("never reached")
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
    with owned(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_come_at_once_one_is_inside(tmp_path):
    inside, most, entered, guard = [], [], [], threading.Lock()

    def come() -> None:
        for _ in range(200):
            try:
                with owned(tmp_path / "run"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                with guard:
                    entered.append(1)
            except OutputInUseError:
                pass

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered and max(most) == 1


def test_cache_folder_follows_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "here"))
    assert gp.core.cache_dir() == tmp_path / "here"
    assert gp.core.cache_dir().is_dir()


def test_without_a_home_the_message_names_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("GANPRUNE_CACHE", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))  # nothing can be made below it
    with pytest.raises(CacheError, match="environment variable GANPRUNE_CACHE"):
        cache_dir()

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(CacheError, match=r"Could not determine home directory.*GANPRUNE_CACHE"):
        cache_dir()


def test_metadata_that_json_cannot_hold_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "file"
    write_safetensors(path, {"a": torch.ones(2)}, {"version": 1})
    with pytest.raises(ValueError, match="metadata must be values that JSON can hold"):
        write_safetensors(path, {"a": torch.ones(2)}, {"version": torch.ones(1)})
    assert read_safetensors(path)[1]["version"] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.bool])
def test_tensors_come_back_as_they_were_under_any_defaults(tmp_path, dtype):
    values = torch.tensor([0, 1, 1]).to(dtype)
    write_safetensors(tmp_path / "file", {"a": values}, {})
    with torch.device("meta"):
        found = read_safetensors(tmp_path / "file")[0]["a"]
    assert found.device.type == "cpu" and found.dtype == dtype
    assert torch.equal(found, values)
