"""Checkpoints hold everything, execute nothing, and refuse what does not fit."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ganprune as gp
from ganprune.core import tensors as checkpoints


@pytest.fixture
def gan():
    return gp.dcgan(width=4, latent_dim=6, seed=1, device="cpu")


def same_weights(first, second):
    return all(
        torch.equal(a, second.networks()[name].state_dict()[key])
        for name, network in first.networks().items()
        for key, a in network.state_dict().items()
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: gp.dcgan((3, 32, 32), width=3, norm="batch", seed=2, device="cpu"),
        lambda: gp.dcgan(width=4, norm="spectral", device="cpu"),
        lambda: gp.mlp_gan((2,), hidden=(5,), norm="spectral", device="cpu"),
    ],
)
def test_round_trip_is_exact(make, tmp_path):
    gan = make()
    gp.save(tmp_path / "gan.safetensors", gan, metadata={"note": "ä", "steps": 3})
    again = gp.load(tmp_path / "gan.safetensors", "cpu")
    assert again.spec == gan.spec and again.metadata == {"note": "ä", "steps": 3}
    assert same_weights(gan, again)
    z = gp.sample_latents(3, gan.spec.generator.latent_dim)
    assert torch.equal(gp.sample(gan.generator, latents=z), gp.sample(again.generator, latents=z))


def test_channels_last_networks_are_saved_by_value(gan, tmp_path):
    gan.generator.to(memory_format=torch.channels_last)
    gp.save(tmp_path / "gan.safetensors", gan)
    assert same_weights(gan, gp.load(tmp_path / "gan.safetensors", "cpu"))


def test_masks_travel_with_the_gan(gan, tmp_path):
    mask = gp.prune(gan.generator, sparsity=0.7, ema=gan.generator_ema)
    gp.save(tmp_path / "gan.safetensors", gan, masks={"generator": mask})
    again = gp.load(tmp_path / "gan.safetensors", "cpu")
    assert again.masks["generator"] == mask and again.masks["generator_ema"] == mask
    gp.save(tmp_path / "twice.safetensors", again)
    assert gp.load(tmp_path / "twice.safetensors", "cpu").masks["generator"] == mask


def test_a_mask_that_does_not_hold_is_not_saved(gan, tmp_path):
    mask = gp.prune(gan.generator, sparsity=0.5, ema=gan.generator_ema)
    with torch.no_grad():
        gan.generator.layers.deconv2.weight.fill_(1.0)
    path = tmp_path / "gan.safetensors"
    with pytest.raises(gp.MaskError):
        gp.save(path, gan, masks={"generator": mask})
    assert not path.exists()
    with pytest.raises(
        ValueError, match="masks must be keyed by generator, discriminator, generator_ema, got critic"
    ):
        gp.save(path, gan, masks={"critic": mask})


def test_a_failed_write_keeps_the_old_file(gan, tmp_path, monkeypatch):
    path = tmp_path / "gan.safetensors"
    gp.save(path, gan, metadata={"version": 1})
    monkeypatch.setattr(checkpoints, "save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        gp.save(path, gan, metadata={"version": 2})
    assert gp.load(path, "cpu").metadata == {"version": 1}
    assert os.listdir(tmp_path) == ["gan.safetensors"]


def test_missing_and_damaged_files(gan, tmp_path):
    path = tmp_path / "gan.safetensors"
    with pytest.raises(gp.core.CheckpointError, match="checkpoint not found: expected a file at"):
        gp.load(path)
    gp.save(path, gan)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(gp.core.CheckpointError, match="is not a whole safetensors file"):
        gp.load(path)


def test_a_pickle_is_never_executed(tmp_path):
    path, witness = tmp_path / "evil.safetensors", tmp_path / "witness"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(witness),)

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(gp.core.CheckpointError):
        gp.load(path)
    assert not witness.exists()


def test_a_foreign_file_is_refused(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(gp.core.CheckpointError, match="was not written by ganprune"):
        gp.load(tmp_path / "other.safetensors")


def rewrite(path, change):
    tensors, metadata = checkpoints.read_safetensors(path)
    change(tensors, metadata)
    save_file(tensors, path, {"ganprune": json.dumps(metadata)})


def test_another_shape_is_named(gan, tmp_path):
    path = tmp_path / "gan.safetensors"
    gp.save(path, gan)
    rewrite(path, lambda tensors, meta: meta["specs"]["generator"].update(channels=[16, 8, 5]))
    message = r"does not fit: .*layers.deconv3.weight has shape \(8, 4, 4, 4\), the network wants \(8, 5"
    with pytest.raises(gp.core.CheckpointError, match=message):
        gp.load(path)


def test_missing_and_superfluous_weights_are_named(gan, tmp_path):
    path = tmp_path / "gan.safetensors"
    gp.save(path, gan)
    rewrite(
        path,
        lambda tensors, meta: tensors.update({"generator/more": tensors.pop("generator/layers.norm1.bias")}),
    )
    with pytest.raises(
        gp.core.CheckpointError, match=r"layers.norm1.bias is missing; more is not in the network"
    ):
        gp.load(path)


def test_an_unknown_model_is_refused(gan, tmp_path):
    path = tmp_path / "gan.safetensors"
    gp.save(path, gan)
    rewrite(path, lambda tensors, meta: meta["specs"]["generator"].update(model="Unheard"))
    with pytest.raises(
        gp.core.CheckpointError, match="describes no network that this package knows: model must be one of"
    ):
        gp.load(path)


def test_a_network_without_spec_cannot_be_saved(tmp_path):
    own = nn.Linear(2, 2)
    with pytest.raises(gp.core.CheckpointError, match=r"the generator \(Linear\) has no spec"):
        gp.save(tmp_path / "x.safetensors", gp.GAN(own, nn.Linear(2, 1)))


@pytest.mark.parametrize("name", checkpoints.PRETRAINED)
def test_shipped_gans_load_and_say_how_they_were_made(name):
    gan = gp.load_pretrained(name, "cpu")
    assert gan.metadata["command"].startswith(f"python -m ganprune.experiments.pretrained {name}")
    assert gan.metadata["validation"]["digit_fid"] > 0
    assert gp.sample(gan.generator_ema, 4).shape == (4, 1, 28, 28)


def test_shipped_gans_are_small_and_the_dcgan_is_good():
    folder = checkpoints._PRETRAINED_FOLDER
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10e6
    quality = gp.load_pretrained("dcgan-mnist", "cpu").metadata["validation"]
    assert quality["samples"] == 10_000
    assert quality["digit_fid"] <= 6 * quality["digit_fid_floor"]


def test_the_recorded_quality_of_the_shipped_dcgan_is_its_quality():
    gan, data = gp.load_pretrained("dcgan-mnist", "cpu"), gp.mnist("cpu")
    measured = gp.evaluate(gan.generator_ema, data.validation, metrics=("fid",))
    assert measured.digit_fid == pytest.approx(gan.metadata["validation"]["digit_fid"], rel=0.02)


def test_unknown_pretrained_name():
    with pytest.raises(ValueError, match="name must be one of dcgan-mnist, mlp-mnist, got 'biggan'"):
        gp.load_pretrained("biggan")
