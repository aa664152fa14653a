"""Where a training run stands: networks, optimisers, masks, history; saved and resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganprune.core.device import as_device, best_precision
from ganprune.core.tensors import CheckpointError, read_safetensors, write_safetensors
from ganprune.masks.mask import Mask
from ganprune.networks.checkpoints import gan_from, gan_metadata, network_tensors
from ganprune.networks.gan import GAN, built_here
from ganprune.training.config import TrainConfig


class TrainState:
    """A run at one step: networks, optimisers, masks, history. Save it, load it, and go on as if nothing happened.

    Attributes:
        gan: trained in place.
        config: with "auto" precision resolved.
        step: generator updates done.
        optimizers: "generator" and "discriminator".
        history: rows of mean losses, one per ``log_every`` steps.
        rows: callback's name → what it found, one row of plain values per finding.
        extras: tensors that callbacks keep from step to step; a callback's keys begin with its own name.
        stop: a callback that sets it ends the training after the present step.

    Which weights are pruned is known to ``gan.masks`` alone; a state holds no mask of its own and no hook.
    """

    def __init__(self, gan: GAN, config: TrainConfig) -> None:
        precision = best_precision(gan.device) if config.precision == "auto" else config.precision
        self.gan = gan
        self.config = dataclasses.replace(config, precision=precision)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.pending: list[Tensor] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.extras: dict[str, Tensor] = {}
        self.stop = False
        for network in gan.networks().values():
            if wants_channels_last(network, config):
                network.to(memory_format=torch.channels_last)
        d_rate = config.discriminator_learning_rate
        self.optimizers = {
            "generator": _optimizer(gan.generator, config, config.learning_rate),
            "discriminator": _optimizer(
                gan.discriminator, config, config.learning_rate if d_rate is None else d_rate
            ),
        }

    @property
    def masks(self) -> dict[str, Mask]:
        """The masks of the GAN, by network."""
        return dict(self.gan.masks)

    def save(self, path: str | Path) -> None:
        """Writes the whole state to one safetensors file, atomically."""
        write_safetensors(path, *self.packed())

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the metadata of the file that :meth:`save` writes, for files that hold more than a state."""
        tensors = network_tensors(self.gan.networks(), self.gan.masks)
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
            "rows": self.rows,
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
        state = cls(gan, TrainConfig(**metadata["config"]))
        state.step, state.history = metadata["step"], metadata["history"]
        state.rows = metadata.get("rows", {})
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

    @classmethod
    def resume(
        cls, path: str | Path, start: Callable[[], TrainState], device: str | torch.device | None = None
    ) -> TrainState:
        """The state in a file if there is one, else the state that ``start()`` gives: for runs that may be stopped.

        Args:
            path: where the run saves its state, by :class:`~ganprune.training.callbacks.Checkpoint` for example.
            start: makes the state at step 0.
            device: where a loaded state goes on; None for the best device.

        Raises:
            CheckpointError: as :meth:`load` does.
        """
        return cls.load(path, device) if Path(path).is_file() else start()

    def __repr__(self) -> str:
        return f"TrainState(step {self.step} of {self.config.steps}, {self.gan!r})"


def wants_channels_last(network: nn.Module, config: TrainConfig) -> bool:
    """Whether a network with convolutions of images gets the channels-last layout: one built here, or if asked to."""
    if next(network.parameters()).device.type == "mps":
        return False
    asked = built_here(network) if config.channels_last is None else config.channels_last
    return asked and any(parameter.ndim == 4 for parameter in network.parameters())


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
