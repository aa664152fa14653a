"""Checkpoints: specs and masks beside safetensors weights. Loading one never executes code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.checks import check_choice, check_integer
from ganprune.core.device import as_device, standard_defaults
from ganprune.core.random import keep_random_state
from ganprune.core.tensors import CheckpointError, read_safetensors, write_safetensors
from ganprune.masks.apply import check_mask
from ganprune.masks.mask import Mask
from ganprune.networks.gan import GAN, GANSpec
from ganprune.networks.registry import UntrustedError, spec_from_dict, spec_to_dict

PRETRAINED = ("dcgan-mnist", "mlp-mnist")
MOMENTS = ("initial", "early", "trained")
PRETRAINED_FOLDER = Path(__file__).parents[1] / "assets" / "pretrained"


def network_tensors(networks: Mapping[str, nn.Module], masks: Mapping[str, Mask]) -> dict[str, Tensor]:
    """All weights, buffers and masks under keys "network/key" and "mask/network/key".

    Raises:
        MaskError: if a network has a non-zero weight under its mask.
    """
    for name, mask in masks.items():
        check_mask(networks[name], mask)
    tensors = {
        f"{name}/{_plain_key(key)}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    tensors |= {f"mask/{name}/{key}": value for name, mask in masks.items() for key, value in mask.items()}
    return tensors


def _plain_key(key: str) -> str:
    """The name of a weight as it is without ``torch.compile``, which puts ``_orig_mod.`` before what it wraps."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def load_network(network: nn.Module, tensors: Mapping[str, Tensor], name: str, path: str | Path) -> None:
    """Copies the weights "name/…" into a network, which takes their dtypes too.

    Raises:
        CheckpointError: if a key is missing or superfluous, or a shape or kind of number differs; all of them are
            listed.
    """
    found = {
        key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")
    }
    problems = misfits(network, found)
    if problems:
        raise CheckpointError(f"the {name} in {path} does not fit: " + "; ".join(problems))
    for key, tensor in network.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(found[key].dtype)
    network.load_state_dict(found)


def misfits(network: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """What keeps a network from taking these weights, one sentence each."""
    wanted = network.state_dict()
    problems = [f"{key} is missing" for key in wanted if key not in tensors]
    problems += [f"{key} is not in the network" for key in tensors if key not in wanted]
    for key, value in wanted.items():
        if key not in tensors:
            continue
        if tensors[key].shape != value.shape:
            shapes = tuple(tensors[key].shape), tuple(value.shape)
            problems.append(f"{key} has shape {shapes[0]}, the network wants {shapes[1]}")
        elif tensors[key].is_floating_point() != value.is_floating_point():
            problems.append(f"{key} holds {tensors[key].dtype}, the network wants {value.dtype}")
    return problems


def masks_from(tensors: Mapping[str, Tensor], order: Mapping[str, Sequence[str]]) -> dict[str, Mask]:
    """The masks under "mask/network/key", by network.

    Args:
        tensors: of a file; safetensors sorts them by name.
        order: network → its mask's layers in their order, as the metadata has it; files of before have none.
    """
    masks: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("mask/"):
            _, network, weight = key.split("/", 2)
            masks.setdefault(network, {})[weight] = value
    return {name: Mask({key: parts[key] for key in order.get(name, parts)}) for name, parts in masks.items()}


def mask_order(masks: Mapping[str, Mask]) -> dict[str, list[str]]:
    """The order of each mask's layers, for the metadata of a file."""
    return {network: list(mask) for network, mask in masks.items()}


def gan_metadata(gan: GAN) -> dict[str, Any]:
    """The specs of a GAN and the order of its masks' layers, as JSON-able values.

    Raises:
        CheckpointError: if a network has no spec or none that JSON can hold, or its spec builds another network than
            it is by now: a file that could not be loaded must not take the place of one that could.
    """
    specs = {}
    for name in ("generator", "discriminator"):
        network = gan.networks()[name]
        spec = getattr(network, "spec", None)
        if spec is None:
            raise CheckpointError(
                f"the {name} ({type(network).__name__}) has no spec, so a checkpoint could not "
                "rebuild it; give it one with register_model_spec"
            )
        specs[name] = spec_to_dict(spec)
        try:
            as_read = json.loads(json.dumps(specs[name]))
        except TypeError as error:
            raise CheckpointError(
                f"the spec of the {name} must hold values that JSON can hold, got {spec!r}: {error}"
            ) from error
        for one in (name, "generator_ema") if name == "generator" else (name,):
            _refuse_what_load_refuses(one, gan.networks()[one], as_read)
    return {"specs": specs, "mask_order": mask_order(gan.masks), "said_dense": sorted(gan.masks.said_dense)}


def _refuse_what_load_refuses(name: str, network: nn.Module, spec: dict[str, Any]) -> None:
    """CheckpointError if the network that a spec builds does not take the weights of this one."""
    try:
        with keep_random_state(), standard_defaults():
            rebuilt = spec_from_dict(spec).build()
    except (
        UntrustedError
    ):  # a network of the user's own outside of trust(): it was built once, and is not built again
        return
    except ValueError as error:
        raise CheckpointError(
            f"the {name} cannot be saved, because its spec does not rebuild it: {error}"
        ) from error
    weights = {_plain_key(key): value for key, value in network.state_dict().items()}
    problems = misfits(rebuilt, weights)
    if problems:
        raise CheckpointError(
            f"the {name} cannot be saved, because it is no longer the network that its spec builds: "
            + "; ".join(problems)
        )


def gan_from(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], path: str | Path) -> GAN:
    """The GAN (on the CPU) that the tensors and metadata describe, masks included."""
    try:
        specs = {name: spec_from_dict(values) for name, values in metadata["specs"].items()}
        gan = GAN.from_spec(GANSpec(specs["generator"], specs["discriminator"]), device="cpu")
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} describes no network that this package knows: {error}") from error
    for name, network in gan.networks().items():
        load_network(network, tensors, name, path)
    for name, mask in masks_from(tensors, metadata.get("mask_order", {})).items():
        check_mask(gan.networks()[name], mask)
        if name != "generator_ema":  # it has the generator's mask
            gan.masks[name] = mask
    gan.masks.say_dense(metadata.get("said_dense", ()))
    gan.metadata = metadata.get("metadata", {})
    return gan


def save(
    path: str | Path,
    gan: GAN,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Saves a GAN: specs, weights of G, D and the EMA of G, and ``gan.masks``.

    Args:
        path: file to write, usually ``*.safetensors``; written atomically.
        gan: any GAN whose networks have a registered spec.
        metadata: JSON-able remarks, such as the command and the seed; None for ``gan.metadata``.

    Raises:
        MaskError: if a network and its mask disagree, see ``gan.masks.check``. Nothing is written then.
        CheckpointError: if :func:`load` could not read the file: a network has no spec, or is no longer the one that
            its spec builds. An older file of that name stays as it was.
        ValueError: if the metadata holds what JSON cannot hold.
    """
    gan.masks.check()
    remarks = dict(gan.metadata if metadata is None else metadata)
    write_safetensors(
        path, network_tensors(gan.networks(), gan.masks), {**gan_metadata(gan), "metadata": remarks}
    )


def load(path: str | Path, device: str | torch.device | None = None) -> GAN:
    """Loads what :func:`save` wrote; ``gan.masks`` and ``gan.metadata`` come with it.

    Raises:
        CheckpointError: if the file is missing, damaged, or describes networks of another shape than it holds.
    """
    tensors, metadata = read_safetensors(path)
    return gan_from(tensors, metadata, path).to(as_device(device))


def pretrained_path(
    name: str, seed: int = 0, moment: str = "trained", folder: str | Path | None = None
) -> Path:
    """Where a GAN that ships with the package lies; the arguments are those of :func:`load_pretrained`."""
    ending = f"-{seed}" if name == "dcgan-mnist" else ""
    ending += "" if moment == "trained" else f"-{moment}"
    return Path(folder or PRETRAINED_FOLDER) / f"{name}{ending}.safetensors"


def load_pretrained(
    name: str, device: str | torch.device | None = None, *, seed: int = 0, moment: str = "trained"
) -> GAN:
    """A dense GAN that ships with the package; ``gan.metadata`` says which command trained it and how good it is.

    Args:
        name: "dcgan-mnist", the course's pair, or "mlp-mnist".
        device: None for the best device.
        seed: of the course's pair, 0 to 4: five that were trained independently, from different weights.
        moment: of the course's pair of seed 0, "initial" and "early" (an eighth of the steps) as well as "trained".

    Raises:
        ValueError: if there is no such GAN.
    """
    check_choice("name", name, PRETRAINED)
    check_choice("moment", moment, MOMENTS)
    path = pretrained_path(name, check_integer("seed", seed, 0), moment)
    if not path.is_file() or (name != "dcgan-mnist" and seed):
        raise ValueError(f"there is no {name} of seed {seed} at the moment {moment!r}: {_shipped(name)}")
    return load(path, device)


def _shipped(name: str) -> str:
    """Which files of a name there are, in words."""
    return "there are " + ", ".join(
        sorted(path.stem for path in PRETRAINED_FOLDER.glob(f"{name}*.safetensors"))
    )
