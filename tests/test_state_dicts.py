"""Weights from files of other people: found under their keys, checked as a whole, and no code is run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tools.small_gans import equal
from torch import nn

import ganprune as gp
from ganprune.core.tensors import CheckpointError


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


OTHER = {"weight": torch.ones(2, 2)}


def nested(state: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """What people save, and the key of what is taken."""
    counted = {key: value for key, value in state.items() if "num_batches" not in key}
    return {
        "plain": (state, ""),
        "epoch": ({"epoch": 3, "state_dict": state, "loss": [0.1]}, "state_dict"),
        "ema": ({"g_ema": state, "d": OTHER, "g_optim": {"state": {0: {"step": torch.ones(())}}}}, "g_ema"),
        "parallel": ({"model": {f"module.{key}": value for key, value in state.items()}}, "model"),
        "compiled": ({f"_orig_mod.module.{key}": value for key, value in state.items()}, ""),
        "lightning": (
            {
                "state_dict": {
                    **{f"generator.{key}": value for key, value in state.items()},
                    **{f"discriminator.{key}": value for key, value in OTHER.items()},
                }
            },
            "state_dict/generator",
        ),
        "older": ({"g": counted}, "g"),
    }


@pytest.mark.parametrize("form", list(nested({})))
def test_the_state_dict_that_fits_is_found(tmp_path: Path, form: str) -> None:
    trained, fresh = network(1), network(2)
    saved, key = nested(trained.state_dict())[form]
    torch.save(saved, tmp_path / "w.pt")
    assert gp.networks.load_weights(fresh, tmp_path / "w.pt") == key
    assert equal(dict(fresh.state_dict()), dict(trained.state_dict()))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".unknown", ".safetensors"])
def test_files_are_known_by_what_they_are(tmp_path: Path, suffix: str) -> None:
    trained, fresh = network(1), gp.adapt(network(2), 3)
    path = tmp_path / f"w{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(trained.state_dict(), path)
    gp.networks.load_weights(fresh, path)
    assert equal(dict(fresh.network.state_dict()), dict(trained.state_dict()))
    torch.save(trained.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    gp.networks.load_weights(fresh, tmp_path / "old.pt")


def test_where_several_fit_one_is_chosen_by_its_key(tmp_path: Path) -> None:
    path, fresh = tmp_path / "w.pt", network(3)
    torch.save({"g": network(1).state_dict(), "g_ema": network(2).state_dict()}, path)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"several state dicts that fit the network: 'g', 'g_ema'; choose"
    ):
        gp.networks.load_weights(fresh, path)
    assert equal(before, dict(fresh.state_dict()))
    assert gp.networks.load_weights(fresh, path, key="g_ema") == "g_ema"
    assert equal(dict(fresh.state_dict()), dict(network(2).state_dict()))
    with pytest.raises(CheckpointError, match="has no state dict 'ema'; it has 'g', "):
        gp.networks.load_weights(fresh, path, key="ema")


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_no_code_is_run(tmp_path: Path) -> None:
    torch.save({"state_dict": network().state_dict(), "extra": Trap(tmp_path / "made")}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors and plain values.*never unpickled"):
        gp.networks.load_weights(network(), tmp_path / "w.pt")
    assert not (tmp_path / "made").exists()


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    fresh = network()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    state = network(1).state_dict() | {"0.weight": torch.ones(5, 3)}
    del state["3.bias"]
    torch.save({"g": state, "d": OTHER}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        gp.networks.load_weights(fresh, tmp_path / "w.pt", name="generator")
    for part in (
        "the generator in",
        "'g'",
        "3.bias is missing",
        "0.weight has shape (5, 3), the network wants (4, 3)",
    ):
        assert part in str(caught.value)
    assert equal(before, dict(fresh.state_dict()))


@pytest.mark.parametrize("content", [b"", b"PK no", b"\x80\x02rest", b"text that is long enough"])
def test_damaged_and_missing_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged|is not a whole safetensors file"):
        gp.networks.load_weights(network(), tmp_path / "w")
    with pytest.raises(CheckpointError, match="weights not found: expected a file at"):
        gp.networks.load_weights(network(), tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        gp.networks.load_weights(network(), tmp_path / "list.pt")
    gp.save(tmp_path / "whole", gp.dcgan(width=4, device="cpu"))
    with pytest.raises(CheckpointError, match="is a checkpoint of a whole GAN; load it by gp.load"):
        gp.networks.load_weights(network(), tmp_path / "whole")
