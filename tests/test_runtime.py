"""Profiles, seeds, devices, evaluation mode."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ganprune as gp
from ganprune.core import device as runtime


def test_profile_follows_environment_and_changes_sizes_only(monkeypatch):
    for name, size in (("smoke", 1), ("laptop", 2), ("gpu", 3)):
        monkeypatch.setenv("GANPRUNE_PROFILE", name)
        assert gp.profile(device="cpu").pick(smoke=1, laptop=2, gpu=3) == size
    monkeypatch.delenv("GANPRUNE_PROFILE")
    assert gp.profile().name == "laptop"


def test_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="profile must be one of smoke, laptop, gpu, got 'huge'"):
        gp.profile("huge")


@pytest.mark.parametrize("name", ["abacus", "cuda:x", 3.5])
def test_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match="device must be"):
        gp.core.as_device(name)


def test_absent_device_is_refused():
    if torch.cuda.is_available():
        assert gp.core.as_device("cuda").type == "cuda"
    else:
        with pytest.raises(ValueError, match="torch sees no CUDA device"):
            gp.core.as_device("cuda")


def test_device_can_be_forced(monkeypatch):
    monkeypatch.setenv("GANPRUNE_DEVICE", "cpu")
    assert gp.core.default_device() == torch.device("cpu")


def test_precision_can_be_forced_and_is_checked(monkeypatch):
    monkeypatch.setenv("GANPRUNE_PRECISION", "bfloat16")
    assert gp.core.best_precision("cpu") == "bfloat16"
    monkeypatch.setenv("GANPRUNE_PRECISION", "float8")
    with pytest.raises(ValueError, match="GANPRUNE_PRECISION must be float32 or bfloat16"):
        gp.core.best_precision("cpu")


def test_probed_precision_is_stable_within_a_process(monkeypatch):
    monkeypatch.delenv("GANPRUNE_PRECISION", raising=False)
    first = gp.core.best_precision("cpu")
    assert first in ("float32", "bfloat16")
    assert all(gp.core.best_precision("cpu") == first for _ in range(3))


@given(st.integers(0, 2**63), st.integers(0, 2**40), st.text(max_size=5))
def test_step_seed_is_a_function_into_32_bits(seed, step, stream):
    value = gp.step_seed(seed, step, stream)
    assert value == gp.step_seed(seed, step, stream)
    assert 0 <= value < 2**32


def test_step_seeds_differ_where_cpu_generators_would_not():
    draws = {
        float(torch.rand(1, generator=gp.seeded(gp.step_seed(seed, 0)))) for seed in (1, 1 + 2**32, 1 + 2**33)
    }
    assert len(draws) == 3
    assert len({gp.step_seed(s, t, x) for s in range(20) for t in range(20) for x in "ab"}) == 800


def test_eval_mode_restores_each_submodule():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    network.train()
    network[1].eval()
    with pytest.raises(RuntimeError, match="inside"), gp.eval_mode(network):
        assert not any(part.training for part in network.modules())
        raise RuntimeError("inside")
    assert [part.training for part in network] == [True, False, True]


def test_progress_writes_to_standard_error_only(monkeypatch, capsys):
    monkeypatch.setenv("GANPRUNE_PROGRESS", "1")
    with runtime.progress(3, "counting") as bar:
        bar.update(3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "counting" in captured.err


def test_cache_folder_follows_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "here"))
    assert gp.core.cache_dir() == tmp_path / "here"
    assert gp.core.cache_dir().is_dir()


def test_import_is_lazy():
    code = (
        "import sys, ganprune; print(any(m in sys.modules for m in ('torch', 'matplotlib', 'torchvision')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    )


def test_every_public_name_resolves():
    for name in gp.__all__:
        assert getattr(gp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = gp.nonsense


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with runtime.replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(ZeroDivisionError), runtime.replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
