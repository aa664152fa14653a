"""The GAN and the data that a command works on: shipped, from a checkpoint, or of the user's own making."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

import ganprune as gp
from ganprune.cli.options import ROLES, UsageError, wrong
from ganprune.cli.output import say
from ganprune.core.random import keep_random_state
from ganprune.data.folders import folder_of
from ganprune.losses import DEFAULT_LOSS
from ganprune.networks.checkpoints import PRETRAINED
from ganprune.networks.convolutional import SIDES
from ganprune.networks.custom import CustomSpec, check_discriminator, check_generator, own_spec_of
from ganprune.networks.importing import file_key
from ganprune.networks.sampling import draw_inputs
from ganprune.scores.registry import get_score


def named_paths(options: argparse.Namespace) -> list[str]:
    """The ``module:Class`` that the user named, and so allows to be imported."""
    return [path for role in ROLES if (path := getattr(options, role, None)) is not None]


def settle_networks(options: argparse.Namespace) -> None:
    """Checks which networks are named, and fills in the defaults that depend on that.

    Raises:
        UsageError: if two options do not go together.
    """
    command, checkpoint = options.command, options.checkpoint
    for role in ROLES:
        for name in ("args", "weights", "weights_key"):
            if getattr(options, f"{role}_{name}") is not None and getattr(options, role) is None:
                option = f"--{role}-{name.replace('_', '-')}"
                raise wrong(command, option, f"needs --{role}, which names the class")
        if checkpoint is not None and getattr(options, f"{role}_weights") is not None:
            raise wrong(command, f"--{role}-weights", "not allowed with --checkpoint, which has weights")
    fresh = command == "train" or (command == "lottery" and checkpoint is None)
    if fresh and options.generator is None:
        options.latent_dim = options.latent_dim or 64
    elif getattr(options, "latent_dim", None) is not None:
        given = "--generator" if checkpoint is None else "--checkpoint"
        raise wrong(command, "--latent-dim", f"not allowed with {given}, which has its own")
    elif checkpoint is None and options.generator is None:
        if options.discriminator is not None:
            raise wrong(command, "--discriminator", "needs --generator, or the --checkpoint that holds it")
        options.checkpoint = PRETRAINED[0]


def load_gan(options: argparse.Namespace) -> gp.GAN:
    """The GAN of ``--checkpoint``, else the one that ``--generator`` and ``--discriminator`` begin.

    Raises:
        UsageError: if the checkpoint holds other networks than those that are named.
        CheckpointError: if the checkpoint or the weights cannot be loaded.
        ValueError: if a network of one's own cannot be built, or is no generator or discriminator.
    """
    if options.checkpoint is None:
        return new_gan(options)
    load = gp.load_pretrained if options.checkpoint in PRETRAINED else gp.load
    gan = load(options.checkpoint, options.device)
    for role in ROLES:
        _check_agreement(options, role, gan.networks()[role])
    _check_own(gan)
    return gan


def new_gan(options: argparse.Namespace, image_shape: tuple[int, int, int] = (1, 28, 28)) -> gp.GAN:
    """A freshly initialised GAN; each network is the user's own if it is named, else the course's.

    Args:
        options: of the command; those that it has not are the course's defaults.
        image_shape: for the course's generator; a generator of one's own says what it makes.
    """
    own: dict[str, CustomSpec] = {}
    for role in ROLES:
        if (path := getattr(options, role)) is not None:
            own[role] = CustomSpec(path, getattr(options, f"{role}_args") or {})
    if "generator" in own:
        with keep_random_state():
            image_shape = check_generator(own["generator"].build(), f"generator {options.generator}")
    shipped = None if len(own) == len(ROLES) else _shipped_spec(options, image_shape, "generator" in own)
    spec = gp.networks.GANSpec(*(own.get(role) or getattr(shipped, role) for role in ROLES))
    gan = gp.GAN.from_spec(spec, options.seed, options.device)
    for role in ROLES:
        if (weights := getattr(options, f"{role}_weights")) is not None:
            key = getattr(options, f"{role}_weights_key")
            taken = gp.networks.load_weights(gan.networks()[role], weights, key, role)
            if taken and key is None:
                say(f"{role} has the weights {taken!r} of {weights}")
    gan.generator_ema.load_state_dict(gan.generator.state_dict())
    _check_own(gan)
    if options.generator_weights is None and options.command in ("evaluate", "sample", "export"):
        say(f"generator {options.generator} has initial weights; --generator-weights loads trained ones")
    return gan


def load_data(options: argparse.Namespace, default: str, gan: gp.GAN | None = None) -> gp.data.ImageData:
    """The data of ``--data``, else those of that name; they must fit the generator."""
    name, made = options.data or default, None if gan is None else _image_shape(gan)
    if folder_of(name) is None and (options.image_size is not None or options.grey):
        raise wrong(
            options.command,
            "--image-size" if options.image_size else "--grey",
            f"is not used by --data {name}",
        )
    given: tuple[Any, ...] = (name, options.data_root, options.device)
    if folder_of(name) is not None:
        side = options.image_size or (made[-1] if made else 64)
        given += (((made[0] if made else 1 if options.grey else 3), side, side),)
    data = gp.load_data(*given)
    shape = made or data.image_shape
    if shape == (1, 32, 32) and data.name == "mnist":
        data = gp.mnist(options.device, image_size=32)
    if shape != data.image_shape:
        maker = (
            f"generator {options.generator}" if options.generator else f"generator of {options.checkpoint}"
        )
        raise UsageError(
            f"ganprune {options.command}: error: argument --data: {data.name} has images of shape "
            f"{data.image_shape}, but the {maker} makes {shape}"
        )
    return data


def _shipped_spec(
    options: argparse.Namespace, image_shape: tuple[int, int, int], own_generator: bool
) -> gp.networks.GANSpec:
    """The specs of the course's pair for images of this shape."""
    width, latent_dim = getattr(options, "width", 32), getattr(options, "latent_dim", None) or 64
    norm = getattr(options, "norm", "none")
    if getattr(options, "model", "dcgan") == "mlp":
        hidden = (8 * width, 16 * width)
        return gp.mlp_gan(image_shape, latent_dim, hidden, norm, device="cpu").spec
    if own_generator and image_shape[1:] not in [(side, side) for side in SIDES]:
        if options.command in ("evaluate", "sample", "export"):  # it has nothing to say there
            return gp.mlp_gan(image_shape, 1, (1,), device="cpu").spec
        raise ValueError(
            f"generator {options.generator} makes images {image_shape}, for which the course has no discriminator; "
            "name one of your own with --discriminator"
        )
    return gp.dcgan(image_shape, width, latent_dim, norm, device="cpu").spec


def _check_agreement(options: argparse.Namespace, role: str, network: nn.Module) -> None:
    """A network that is named must be the one that the checkpoint holds, with the same arguments."""
    path, arguments = getattr(options, role), getattr(options, f"{role}_args")
    if path is None:
        return
    where = f"ganprune {options.command}: error: argument --{role}"
    spec = own_spec_of(network.spec)
    if spec is None or file_key(spec.path) != file_key(path):
        held = type(network).__name__ if spec is None else spec.path
        raise UsageError(f"{where}: {options.checkpoint} holds the {role} {held}, not {path}")
    if arguments is not None and arguments != spec.arguments:
        raise UsageError(
            f"{where}-args: {options.checkpoint} was made with {spec.arguments}, got {arguments}"
        )


def _check_own(gan: gp.GAN) -> None:
    """Networks of one's own are tried out before anything is done with them."""
    for network in (gan.generator, gan.generator_ema):
        if (own := own_spec_of(network.spec)) is not None:
            check_generator(network, f"generator {own.path}")
    spec = own_spec_of(gan.discriminator.spec)
    shape = _image_shape(gan)
    if spec is not None and shape is not None:
        check_discriminator(gan.discriminator, shape, f"discriminator {spec.path}")


def _image_shape(gan: gp.GAN) -> tuple[int, ...] | None:
    """What the generator makes; None if that is no image."""
    spec = gan.generator.spec
    if (own := own_spec_of(spec)) is not None:
        return check_generator(gan.generator, f"generator {own.path}")
    shape = getattr(spec, "image_shape", None) or getattr(spec, "output_shape", None)
    return tuple(shape) if shape else None


def loss_of(options: argparse.Namespace, gan: gp.GAN) -> str:
    """The loss of ``--loss``, else that of the checkpoint; a checkpoint's game goes on by its own rules.

    What a command has no options for (penalty, clipping, critic steps) is taken from the checkpoint as well.
    """
    config = gan.metadata.get("config", {})
    for name in ("penalty", "penalty_weight", "penalty_every", "critic_steps", "clip"):
        if name in config and not hasattr(options, name):
            setattr(options, name, config[name])
    return options.loss or config.get("loss", DEFAULT_LOSS)


def loss_inputs(
    options: argparse.Namespace, gan: gp.GAN, loss: str, network: str = "generator", split: Any = None
) -> dict[str, Any]:
    """What the score of ``--score`` looks at, as arguments of ``score``; nothing for one that looks at weights alone.

    Args:
        options: ``score`` and ``seed``.
        gan: the pair; the losses are those of this very pair, as it is when the score is taken.
        loss: the name of the loss.
        network: "generator" or "discriminator".
        split: real images; only for a discriminator.

    Returns:
        ``loss_fn`` over 512 samples, one at a time where the score takes a batch for a sample; ``inputs``, 256 of them.
    """
    score, seed = get_score(options.score), options.seed
    known = score.needs | score.optional
    batches, size = (512, 1) if options.score == "squared-gradient" else (8, 64)
    given: dict[str, Any] = {}
    if "loss_fn" in known and network == "discriminator":
        given["loss_fn"] = gp.losses.discriminator_loss(gan, split, batches, size, loss, seed)
    elif "loss_fn" in known:
        given["loss_fn"] = gp.generator_loss(gan, batches, size, loss, seed)
    if "inputs" in known:
        from_split = network == "discriminator"
        given["inputs"] = split.batch(256, seed, 0) if from_split else draw_inputs(gan.generator, 256, seed)
    return given
