"""ganprune: the package behind the course on pruning generative adversarial networks.

``import ganprune as gp`` gives every public name; the module behind a name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "runtime": (
        "Profile profile as_device default_device best_precision eval_mode seeded step_seed progress cache_dir"
    ),
    "data": "DataError ImageData Split mnist fashion_mnist cifar10 load_data gaussian_ring",
    "models": (
        "GAN GANSpec DCGANGeneratorSpec DCGANDiscriminatorSpec MLPGeneratorSpec MLPDiscriminatorSpec "
        "dcgan mlp_gan sample sample_latents register_model_spec"
    ),
    "imported": "ImportedSpec trust",
    "losses": ("Loss LOSSES get_loss gradient_penalty r1_penalty generator_loss discriminator_loss frozen"),
    "masks": (
        "Mask MaskKeeper MaskError prunable_weights apply_mask keep_mask check_mask from_torch_prune to_torch_prune"
    ),
    "checkpoints": "CheckpointError save load load_pretrained",
    "pruning": (
        "score allocate prune prune_generator recalibrate_batchnorm register_score channel_scores "
        "SCORES MovementPhase get_schedule GradualPruning MovementPruning DynamicSparseTraining BalanceController "
        "find_tickets Ticket shrink_channels mask_channels keep_channels compact"
    ),
    "metrics": "evaluate FidelityReport complexity ComplexityReport layer_report",
    "training": "TrainConfig TrainState train train_epoch DivergenceError",
    "callbacks": "every Evaluate Checkpoint",
    "results": "append_record read_records run interval paired_ratio verdict Interval",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}
_SUBMODULES = ("metrics", "pruning", "experiments", "plots", "results")

__all__ = sorted(["__version__", *_MODULE_OF, *_SUBMODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"ganprune.{_MODULE_OF[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"ganprune.{name}")
    raise AttributeError(f"module 'ganprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
