"""Networks: what describes them, the GAN that holds a pair, networks of your own, checkpoints."""

from ganprune.networks.adapter import AdaptedSpec, Adapter, adapt
from ganprune.networks.build import dcgan, mlp_gan
from ganprune.networks.checking import NotFiniteError
from ganprune.networks.checkpoints import load, load_pretrained, save
from ganprune.networks.convolutional import DCGANDiscriminatorSpec, DCGANGeneratorSpec
from ganprune.networks.custom import CustomSpec, check_discriminator, check_generator, trust
from ganprune.networks.fully_connected import MLPDiscriminatorSpec, MLPGeneratorSpec
from ganprune.networks.gan import GAN, GANMasks, GANSpec, built_here
from ganprune.networks.parts import copy_network
from ganprune.networks.registry import register_model_spec
from ganprune.networks.sampling import (
    check_output,
    draw_inputs,
    draw_latents,
    latent_dim_of,
    latent_shape_of,
    sample,
    sample_latents,
)
from ganprune.networks.state_dicts import load_weights

__all__ = [
    "GAN",
    "AdaptedSpec",
    "Adapter",
    "CustomSpec",
    "DCGANDiscriminatorSpec",
    "DCGANGeneratorSpec",
    "GANMasks",
    "GANSpec",
    "MLPDiscriminatorSpec",
    "MLPGeneratorSpec",
    "NotFiniteError",
    "adapt",
    "built_here",
    "check_discriminator",
    "check_generator",
    "check_output",
    "copy_network",
    "dcgan",
    "draw_inputs",
    "draw_latents",
    "latent_dim_of",
    "latent_shape_of",
    "load",
    "load_pretrained",
    "load_weights",
    "mlp_gan",
    "register_model_spec",
    "sample",
    "sample_latents",
    "save",
    "trust",
]
