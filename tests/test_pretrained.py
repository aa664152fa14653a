"""How a shipped GAN is made: trained by its recipe, measured, and resumed where it was stopped."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest
from tools.small_data import small_data
from tools.small_gans import equal, weights

import ganprune as gp
from ganprune.experiments import pretrained


def make_small(seed: int) -> gp.GAN:
    return gp.mlp_gan(hidden=(6, 5), latent_dim=4, seed=seed, device="cpu")


def test_a_stopped_recipe_goes_on_to_the_same_gan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GANPRUNE_DEVICE", "cpu")
    monkeypatch.setattr(pretrained, "mnist", small_data)
    monkeypatch.setattr(pretrained, "evaluate", partial(gp.evaluate, samples=40))
    config = gp.TrainConfig(steps=4, batch_size=4, precision="float32")
    monkeypatch.setitem(pretrained.RECIPES, "mlp-mnist", pretrained.Recipe(make_small, config))
    stopped = []

    def evaluate(*arguments: object, **options: object) -> None:
        stopped.extend((tmp_path / "cache").glob("*.partial.safetensors"))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "every", lambda steps, callback, at_end: gp.every(3, callback, at_end))
        patch.setattr(pretrained, "evaluate", evaluate)
        with pytest.raises(KeyboardInterrupt):
            pretrained.make("mlp-mnist", seed=3, folder=tmp_path)
    assert gp.TrainState.load(stopped[0], "cpu").step == 3
    made = gp.load(pretrained.make("mlp-mnist", seed=3, folder=tmp_path), "cpu")
    state = gp.TrainState(make_small(3), dataclasses.replace(config, seed=3))
    assert equal(weights(made), weights(gp.train(state, small_data().train).gan))
    assert made.metadata["config"]["seed"] == 3 and made.metadata["validation"]["digit_fid"] > 0
    assert not stopped[0].exists()
