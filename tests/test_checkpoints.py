"""Checkpoints hold everything, execute nothing, and refuse what does not fit."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ganprune as gp
from ganprune.core import tensors as tensor_files
from ganprune.networks.checkpoints import PRETRAINED, PRETRAINED_FOLDER


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
    mask = gp.prune(gan, 0.7)
    gp.save(tmp_path / "gan.safetensors", gan)
    again = gp.load(tmp_path / "gan.safetensors", "cpu")
    assert again.masks["generator"] == mask
    assert list(again.masks["generator"]) == list(mask)
    again.masks.check()
    gp.save(tmp_path / "twice.safetensors", again)
    assert gp.load(tmp_path / "twice.safetensors", "cpu").masks["generator"] == mask


def test_a_mask_that_does_not_hold_is_not_saved(gan, tmp_path):
    gp.prune(gan, 0.5)
    with torch.no_grad():
        gan.generator.layers.deconv2.weight.fill_(1.0)
    path = tmp_path / "gan.safetensors"
    with pytest.raises(gp.masks.MaskError):
        gp.save(path, gan)
    assert not path.exists()


def compiled(gan):
    gan.generator = torch.compile(gan.generator, backend="eager")


def compiled_inside(gan):
    gan.discriminator.layers = torch.compile(gan.discriminator.layers, backend="eager")


@pytest.mark.parametrize("change", [compiled, compiled_inside])
def test_compiled_networks_are_saved_under_their_own_names(gan, tmp_path, change):
    weights = {name: network.state_dict() for name, network in gan.networks().items()}
    change(gan)
    gp.save(tmp_path / "gan.safetensors", gan)
    again = gp.load(tmp_path / "gan.safetensors", "cpu")
    for name, network in again.networks().items():
        assert network.state_dict().keys() == weights[name].keys()
        assert all(torch.equal(value, weights[name][key]) for key, value in network.state_dict().items())


def parametrised(gan):
    nn.utils.parametrizations.weight_norm(gan.generator.layers.deconv1)


def widened(gan):
    gan.generator_ema.layers.deconv4 = nn.ConvTranspose2d(4, 3, 4, 2, 1)


def of_integers(gan):
    gan.discriminator.layers.conv1.bias = nn.Parameter(torch.ones(4).int(), requires_grad=False)


def with_a_tensor_in_its_spec(gan):
    object.__setattr__(gan.generator.spec, "latent_dim", torch.tensor(6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            parametrised,
            "generator cannot be saved, because it is no longer the network that its spec builds",
        ),
        (
            widened,
            r"generator_ema cannot be saved.* has shape \(4, 3, 4, 4\), the network wants \(4, 1, 4, 4\)",
        ),
        (of_integers, r"discriminator cannot be saved.*conv1.bias holds torch.int32, the network wants"),
        (with_a_tensor_in_its_spec, "the spec of the generator must hold values that JSON can hold"),
    ],
)
def test_what_load_would_refuse_never_replaces_a_good_file(gan, tmp_path, change, message):
    path = tmp_path / "gan.safetensors"
    gan.discriminator = gp.dcgan(width=4, norm="none", device="cpu").discriminator
    gp.save(path, gan, metadata={"version": 1})
    before = path.read_bytes()
    change(gan)
    with pytest.raises(gp.core.CheckpointError, match=message):
        gp.save(path, gan, metadata={"version": 2})
    assert path.read_bytes() == before
    assert gp.load(path, "cpu").metadata == {"version": 1}


def test_saving_draws_no_random_numbers(gan, tmp_path):
    before = torch.get_rng_state()
    gp.save(tmp_path / "gan.safetensors", gan)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_keep_their_dtype(gan, tmp_path, dtype):
    gan.generator.to(dtype)
    gan.discriminator.layers.conv2.to(dtype)  # one layer only
    with torch.no_grad():
        gan.generator.layers.deconv4.bias += 1e-12  # lost in float32
    gp.save(tmp_path / "gan.safetensors", gan)
    again = gp.load(tmp_path / "gan.safetensors", "cpu")
    assert same_weights(gan, again)
    for name, network in gan.networks().items():
        kinds = {key: value.dtype for key, value in network.state_dict().items()}
        assert kinds == {key: value.dtype for key, value in again.networks()[name].state_dict().items()}


def test_global_defaults_do_not_reach_a_loaded_network(gan, tmp_path):
    gp.save(tmp_path / "gan.safetensors", gan)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            again = gp.load(tmp_path / "gan.safetensors", "cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.generator.layers.deconv1.weight.dtype == torch.float32
    assert same_weights(gan, again)


def test_a_failed_write_keeps_the_old_file(gan, tmp_path, monkeypatch):
    path = tmp_path / "gan.safetensors"
    gp.save(path, gan, metadata={"version": 1})
    monkeypatch.setattr(tensor_files, "save_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
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
    tensors, metadata = gp.core.read_safetensors(path)
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


@pytest.mark.parametrize("name", PRETRAINED)
def test_shipped_gans_load_and_say_how_they_were_made(name):
    gan = gp.load_pretrained(name, "cpu")
    assert gan.metadata["command"].startswith(f"python -m ganprune.experiments.pretrained {name}")
    assert gan.metadata["validation"]["digit_fid"] > 0
    assert gp.sample(gan.generator_ema, 4).shape == (4, 1, 28, 28)


def test_shipped_gans_are_small_and_the_dcgan_is_good():
    folder = PRETRAINED_FOLDER
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25e6
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
