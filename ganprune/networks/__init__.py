"""Networks: what describes them, the GAN that holds a pair, networks of one's own, checkpoints."""

from ganprune.networks.build import dcgan, mlp_gan
from ganprune.networks.checkpoints import load, load_pretrained, save
from ganprune.networks.convolutional import DCGANDiscriminatorSpec, DCGANGeneratorSpec
from ganprune.networks.custom import ImportedSpec, trust
from ganprune.networks.fully_connected import MLPDiscriminatorSpec, MLPGeneratorSpec
from ganprune.networks.gan import GAN, GANMasks, GANSpec, built_here
from ganprune.networks.registry import register_model_spec
from ganprune.networks.sampling import latent_dim_of, sample, sample_latents

__all__ = [
    "GAN",
    "DCGANDiscriminatorSpec",
    "DCGANGeneratorSpec",
    "GANMasks",
    "GANSpec",
    "ImportedSpec",
    "MLPDiscriminatorSpec",
    "MLPGeneratorSpec",
    "built_here",
    "dcgan",
    "latent_dim_of",
    "load",
    "load_pretrained",
    "mlp_gan",
    "register_model_spec",
    "sample",
    "sample_latents",
    "save",
    "trust",
]
