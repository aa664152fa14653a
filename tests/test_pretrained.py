"""How the shipped GANs are made, and that those that ship are what records start from."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tools.small_data import small_data
from tools.small_gans import equal, weights

import ganprune as gp
from ganprune.experiments import pretrained
from ganprune.experiments.arms import arms_of
from ganprune.records import config_hash


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GANPRUNE_DEVICE", "cpu")
    monkeypatch.setattr(pretrained, "course_data", small_data)
    monkeypatch.setattr(pretrained, "arms_of", lambda profile: arms_of("smoke"))
    monkeypatch.setattr(pretrained, "evaluate", partial(gp.evaluate, samples=40))
    return tmp_path / "made"


def test_five_pairs_and_two_moments_are_made_of_one_training(small: Path) -> None:
    paths = pretrained.make("dcgan-mnist", small)
    names = [path.stem for path in paths]
    assert names == [
        *(f"dcgan-mnist-{seed}" for seed in range(5)),
        "dcgan-mnist-0-initial",
        "dcgan-mnist-0-early",
    ]
    gans = dict(zip(names, (gp.load(path, "cpu") for path in paths), strict=True))
    dense = arms_of("smoke").dense
    assert equal(weights(gans["dcgan-mnist-0-initial"]), weights(dense.initial(0)))
    again = gp.TrainState(gans["dcgan-mnist-0-early"], dense.training)
    assert gans["dcgan-mnist-0-early"].metadata["step"] == round(pretrained.EARLY * dense.steps)
    assert again.config.steps == dense.steps
    for seed in range(5):
        gan = gans[f"dcgan-mnist-{seed}"]
        assert gan.metadata["key"] == config_hash(dense) and gan.metadata["config"]["seed"] == seed
        assert gan.metadata["step"] == dense.steps and gan.metadata["validation"]["digit_fid"] > 0
        assert equal(weights(gan), weights(dense.trained(seed, small_data()).gan))
    assert not equal(weights(gans["dcgan-mnist-0"]), weights(gans["dcgan-mnist-1"]))


def test_the_fully_connected_gan_goes_on_where_it_was_stopped(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = gp.TrainConfig(steps=4, batch_size=4, precision="float32")
    monkeypatch.setattr(pretrained, "MLP_TRAINING", config)
    monkeypatch.setattr(pretrained, "every", lambda steps, callback: gp.every(2, callback))
    whole = gp.load(pretrained.make("mlp-mnist", small)[0], "cpu")
    (kept,) = (small.parent / "cache").glob("mlp-mnist-*.safetensors")
    state = gp.TrainState(gp.mlp_gan(hidden=(256, 256), device="cpu"), config)
    gp.train(state, small_data().train, until=2).save(kept)
    resumed = gp.load(pretrained.make("mlp-mnist", small)[0], "cpu")
    assert equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("seed", range(5))
def test_the_shipped_pairs_are_those_that_records_start_from(seed: int) -> None:
    gan = gp.load_pretrained("dcgan-mnist", "cpu", seed=seed)
    assert gan.metadata["key"] == config_hash(arms_of("laptop").dense)
    assert gan.metadata["config"]["seed"] == seed and not gan.masks


def test_the_moments_of_one_run_differ() -> None:
    initial, early, trained = (
        gp.load_pretrained("dcgan-mnist", "cpu", moment=moment) for moment in ("initial", "early", "trained")
    )
    expected = arms_of("laptop").dense.initial(0)
    for key, value in weights(initial).items():
        assert torch.allclose(value, weights(expected)[key].cpu(), atol=1e-6), key
    assert not equal(weights(initial), weights(early)) and not equal(weights(early), weights(trained))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 5}, "there is no dcgan-mnist of seed 5 .*there are dcgan-mnist-0"),
        ({"seed": 1, "moment": "early"}, "of seed 1 at the moment 'early'"),
        ({"moment": "late"}, "moment must be one of"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_what_does_not_ship_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gp.load_pretrained("dcgan-mnist", "cpu", **arguments)
