"""Profiles, devices, precision, defaults, seeds, evaluation mode, progress bars."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ganprune as gp
from ganprune.core.progress import progress


def test_profile_follows_environment_and_changes_sizes_only(monkeypatch):
    for name, size in (("smoke", 1), ("laptop", 2), ("gpu", 3)):
        monkeypatch.setenv("GANPRUNE_PROFILE", name)
        assert gp.profile(device="cpu").pick(smoke=1, laptop=2, gpu=3) == size
    monkeypatch.delenv("GANPRUNE_PROFILE")
    assert gp.profile().name == "laptop"


def test_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="profile must be one of smoke, laptop, gpu, got 'huge'"):
        gp.profile("huge")


@pytest.mark.parametrize("name", ["abacus", "cuda:x", 3.5, "meta", torch.device("meta"), "xpu"])
def test_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match="device must be"):
        gp.core.as_device(name)


def test_absent_device_is_refused():
    if torch.cuda.is_available():
        assert gp.core.as_device("cuda").type == "cuda"
    else:
        with pytest.raises(ValueError, match="torch sees no CUDA device"):
            gp.core.as_device("cuda")


def test_a_device_number_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gp.core.as_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="'cuda:2' was asked for, but torch sees 2 CUDA devices"):
        gp.core.as_device("cuda:2")


def test_device_can_be_forced(monkeypatch):
    monkeypatch.setenv("GANPRUNE_DEVICE", "cpu")
    assert gp.core.default_device() == torch.device("cpu")


def test_precision_can_be_forced_and_is_checked(monkeypatch):
    monkeypatch.setenv("GANPRUNE_PRECISION", "bfloat16")
    assert gp.core.best_precision("cpu") == "bfloat16"
    monkeypatch.setenv("GANPRUNE_PRECISION", "float8")
    with pytest.raises(ValueError, match="GANPRUNE_PRECISION must be float32 or bfloat16"):
        gp.core.best_precision("cpu")


def test_precision_follows_from_the_instructions_of_the_processor(monkeypatch):
    monkeypatch.delenv("GANPRUNE_PRECISION", raising=False)
    for avx512, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda found=avx512: found)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda found=amx: found)
        assert gp.core.best_precision("cpu") == ("bfloat16" if avx512 or amx else "float32")
    for emulated in (True, False):  # older GPUs emulate bfloat16, which is slow: that does not count
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, found=emulated: including_emulation or not found,
        )
        assert gp.core.best_precision("cuda") == ("float32" if emulated else "bfloat16")
    assert gp.core.best_precision("mps") == "float32"


def test_asking_for_the_precision_draws_no_random_numbers_and_needs_no_gradients(monkeypatch):
    monkeypatch.delenv("GANPRUNE_PRECISION", raising=False)
    before = torch.get_rng_state()
    with torch.no_grad():
        inside = gp.core.best_precision("cpu")
    with torch.inference_mode():
        assert gp.core.best_precision("cpu") == inside
    assert gp.core.best_precision("cpu") == inside
    assert torch.equal(before, torch.get_rng_state())


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
    with progress(3, "counting") as bar:
        bar.update(3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "counting" in captured.err


@pytest.mark.parametrize("seed", [3, np.int64(3), torch.tensor(3)])
def test_a_seed_is_the_same_whoever_made_the_integer(seed):
    assert torch.equal(torch.rand(2, generator=gp.seeded(seed)), torch.rand(2, generator=gp.seeded(3)))


def test_standard_defaults_hold_inside_the_block_alone():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            with pytest.raises(ZeroDivisionError), gp.core.standard_defaults():
                made = torch.ones(2)
                1 / 0  # noqa: B018
            outside = torch.ones(2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (made.dtype, made.device.type) == (torch.float32, "cpu")
    assert (outside.dtype, outside.device.type) == (torch.float64, "meta")


def test_a_network_computes_where_its_first_floating_point_parameter_lies():
    table = nn.ParameterList([nn.Parameter(torch.arange(2), requires_grad=False)])
    network = nn.Sequential(table, nn.Linear(2, 2).to(torch.bfloat16), nn.Linear(2, 2).double())
    assert gp.core.placement_of(network) == (torch.device("cpu"), torch.bfloat16)
    only_buffers = nn.BatchNorm1d(2, affine=False).double()
    assert gp.core.placement_of(only_buffers)[1] == torch.float64
    assert gp.core.placement_of(nn.Tanh()) == (torch.device("cpu"), torch.float32)


def test_a_call_leaves_no_trace():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    network[2].forward = lambda x: x + torch.rand_like(x)
    network[0].eval()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    before = torch.get_rng_state()
    output = gp.core.call_untouched(network, torch.randn(4, 2, generator=gp.seeded(0)))
    assert output.shape == (4, 2) and not output.requires_grad
    assert [part.training for part in network] == [False, True, True]
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert torch.equal(before, torch.get_rng_state())
