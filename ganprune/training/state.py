"""Where a training run stands: networks, optimisers, masks, history; saved and resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganprune.core.device import as_device, best_precision
from ganprune.core.tensors import CheckpointError, read_safetensors, write_safetensors
from ganprune.masks.apply import apply_mask
from ganprune.masks.keep import MaskKeeper, keep_mask
from ganprune.masks.mask import Mask
from ganprune.networks.checkpoints import gan_from, gan_metadata, network_tensors
from ganprune.networks.gan import GAN
from ganprune.training.config import TrainConfig


class TrainState:
    """A run at one step: networks, optimisers, masks, history. Save it, load it, and go on as if nothing happened.

    Attributes:
        gan: trained in place.
        config: with "auto" precision resolved.
        step: generator updates done.
        optimizers: "generator" and "discriminator".
        keepers: the mask keepers, by network.
        history: rows of mean losses, one per ``log_every`` steps.
        extras: tensors that callbacks keep from step to step, saved and loaded with the state; a callback's keys
            begin with its own name.
    """

    def __init__(self, gan: GAN, config: TrainConfig, masks: Mapping[str, Mask] | None = None) -> None:
        precision = best_precision(gan.device) if config.precision == "auto" else config.precision
        self.gan = gan
        self.config = dataclasses.replace(config, precision=precision)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.pending: list[Tensor] = []
        self.extras: dict[str, Tensor] = {}
        if config.channels_last and gan.device.type != "mps":
            for network in gan.networks().values():
                if any(p.ndim == 4 for p in network.parameters()):
                    network.to(memory_format=torch.channels_last)
        self.optimizers = {
            "generator": _optimizer(gan.generator, config, config.learning_rate),
            "discriminator": _optimizer(
                gan.discriminator, config, config.discriminator_learning_rate or config.learning_rate
            ),
        }
        self.keepers: dict[str, MaskKeeper] = {}
        for name, mask in (gan.masks if masks is None else masks).items():
            if name != "generator_ema":  # the EMA generator carries the generator's mask
                self.set_mask(name, mask)

    @property
    def masks(self) -> dict[str, Mask]:
        """The masks in force, by network."""
        return {name: keeper.mask for name, keeper in self.keepers.items()}

    def set_mask(self, network: str, mask: Mask) -> None:
        """Applies a mask to the "generator" (and its EMA) or the "discriminator", and keeps it from now on."""
        if network not in self.optimizers:
            raise ValueError(f"network must be generator or discriminator, got {network!r}")
        model = self.gan.networks()[network]
        ema = self.gan.generator_ema if network == "generator" else None
        if network in self.keepers:
            self.keepers[network].update(mask)
        else:
            apply_mask(model, mask, ema=ema)
            self.keepers[network] = keep_mask(model, mask, self.optimizers[network], ema=ema)
        self.gan.masks[network] = mask

    def save(self, path: str | Path) -> None:
        """Writes the whole state to one safetensors file, atomically."""
        write_safetensors(path, *self.packed())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the metadata of the file that :meth:`save` writes, for files that hold more than a state."""
        tensors = network_tensors(self.gan.networks(), self.masks)
        groups = {}
        for name, optimizer in self.optimizers.items():
            packed = optimizer.state_dict()
            groups[name] = packed["param_groups"]
            for index, entries in packed["state"].items():
                tensors |= {f"optimizer/{name}/{index}/{key}": value for key, value in entries.items()}
        tensors |= {f"extra/{key}": value for key, value in self.extras.items()}
        metadata = {
            **gan_metadata(self.gan),
            "config": dataclasses.asdict(self.config),
            "step": self.step,
            "history": self.history,
            "pending": [losses.tolist() for losses in self.pending],
            "metadata": self.gan.metadata,
            "param_groups": groups,
        }
        return tensors, metadata

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device | None = None) -> TrainState:
        """The state that :meth:`save` wrote; training it on gives the weights an uninterrupted run would have.

        Raises:
            CheckpointError: if the file is missing, damaged, or no training state.
        """
        tensors, metadata = read_safetensors(path)
        if "config" not in metadata:
            raise CheckpointError(f"{path} holds a GAN but no training state; use load()")
        gan = gan_from(tensors, metadata, path).to(as_device(device))
        gan.metadata = metadata.get("metadata", {})
        state = cls(gan, TrainConfig(**metadata["config"]))
        state.step, state.history = metadata["step"], metadata["history"]
        state.pending = [torch.tensor(losses, device=gan.device) for losses in metadata["pending"]]
        state.extras = {
            key.removeprefix("extra/"): value.to(gan.device)
            for key, value in tensors.items()
            if key.startswith("extra/")
        }
        for name, optimizer in state.optimizers.items():
            entries: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer/{name}/"):
                    _, _, index, entry = key.split("/")
                    entries.setdefault(int(index), {})[entry] = value
            load_moments(optimizer, entries, metadata["param_groups"][name])
        return state

    def __repr__(self) -> str:
        return f"TrainState(step {self.step} of {self.config.steps}, {self.gan!r})"


def load_moments(
    optimizer: Optimizer, moments: Mapping[int, Mapping[str, Any]], param_groups: Sequence[Any] | None = None
) -> None:
    """Gives an optimiser moments, in the memory layout of their weights: fused kernels read both in one order.

    Args:
        optimizer: without moments, or with some that go.
        moments: number of the parameter → its part of the optimiser's state; single numbers may be shared.
        param_groups: as in the optimiser's ``state_dict``; None for those that it has.
    """
    groups = optimizer.state_dict()["param_groups"] if param_groups is None else param_groups
    optimizer.load_state_dict({"state": dict(moments), "param_groups": list(groups)})
    for weight, kept in optimizer.state.items():
        for entry, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                kept[entry] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _optimizer(network: nn.Module, config: TrainConfig, learning_rate: float) -> Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer: Optimizer
    if config.optimizer == "adam":
        optimizer = torch.optim.Adam(
            parameters,
            learning_rate,
            config.betas,
            weight_decay=config.weight_decay,
            fused=_can_fuse(parameters),
        )
    elif config.optimizer == "rmsprop":
        optimizer = torch.optim.RMSprop(parameters, learning_rate, weight_decay=config.weight_decay)
    else:
        optimizer = torch.optim.SGD(parameters, learning_rate, weight_decay=config.weight_decay)
    for group in optimizer.param_groups:
        group["initial_lr"] = learning_rate
    return optimizer


def _can_fuse(parameters: Sequence[Tensor]) -> bool:
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
