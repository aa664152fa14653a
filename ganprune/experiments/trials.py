"""One trial of a search: its settings, what it may choose, the network that it makes, and how that is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import FloatDistribution
from optuna.trial import Trial
from torch import Tensor

from ganprune.allocation.choose import allocate
from ganprune.core.checks import check_choice, check_integer
from ganprune.data.splits import ImageData, Split
from ganprune.experiments.studies import SAMPLERS
from ganprune.losses import generator_loss
from ganprune.lottery.tickets import copy_gan
from ganprune.masks.mask import Mask, check_sparsity, pruned_count
from ganprune.metrics.fidelity import evaluate
from ganprune.metrics.work import effective_macs
from ganprune.networks.gan import GAN
from ganprune.records.store import provenance
from ganprune.scores.registry import get_score, score
from ganprune.training.config import TrainConfig
from ganprune.training.loop import DivergenceError, train
from ganprune.training.recalibration import recalibrate_batchnorm
from ganprune.training.state import TrainState

SPACES = ("layer-sparsity", "threshold")
MEASURES = ("digit_fid", "fid")

Quality = Callable[[GAN, Split], Mapping[str, Any]]
"""(fine-tuned GAN, split) → measurements by name; the one that the configuration names is minimised."""


@dataclass(frozen=True)
class SearchConfig:
    """What is searched, and how much is spent on it; all but ``trials`` names the study.

    A trial prunes the generator's EMA weights, recalibrates its batch norm, and fine-tunes it with the trained
    discriminator, as long as every other trial; the dense network, trained just as long, is the first.

    Attributes:
        name: of the experiment, in its records.
        checkpoint: name of a GAN that ships with the package, or path of a file; unused where a GAN is given.
        space: "layer-sparsity": one density per layer, drawn log-uniformly. "threshold": one threshold per layer,
            in the units of its scores.
        score: what orders the weights of a layer; one of the registered scores that need no inputs.
        max_sparsity: of a layer, in [0, 1); bounds both spaces.
        trials: in all, those of earlier runs and of other workers included; at least 1.
        finetune_steps: of each trial; 0 for none.
        finetune_learning_rate: held for half of the steps, then decayed to zero.
        batch_size: of the fine-tuning.
        loss: of the fine-tuning.
        precision: of the fine-tuning; "auto" is the best of the first worker's processor, for all trials of the study.
        measure: the quality that is minimised: "digit_fid" (MNIST) or "fid".
        samples: generated per estimate of the quality.
        sampler: "tpe" (Ozaki et al. 2020) or "nsga2" (Deb et al. 2002).
        seed: determines what is tried and how it is fine-tuned.
    """

    name: str = "search"
    checkpoint: str = "dcgan-mnist"
    space: str = "layer-sparsity"
    score: str = "magnitude"
    max_sparsity: float = 0.99
    trials: int = 30
    finetune_steps: int = 300
    finetune_learning_rate: float = 1e-3
    batch_size: int = 64
    loss: str = "hinge"
    precision: str = "auto"
    measure: str = "digit_fid"
    samples: int = 10_000
    sampler: str = "tpe"
    seed: int = 0

    def __post_init__(self) -> None:
        for field, allowed in (("space", SPACES), ("sampler", SAMPLERS), ("measure", MEASURES)):
            check_choice(field, getattr(self, field), allowed)
        for field, least in (("trials", 1), ("finetune_steps", 0), ("samples", 2)):
            object.__setattr__(self, field, check_integer(field, getattr(self, field), least))
        check_sparsity(self.max_sparsity, "max_sparsity")
        if "inputs" in get_score(self.score).needs:
            raise ValueError(f"score must need no inputs, got {self.score!r}")
        self.finetuning()

    def finetuning(self) -> TrainConfig:
        """The configuration of the fine-tuning; it sees other batches than a dense run of the same seed."""
        return TrainConfig(
            steps=max(self.finetune_steps, 1),
            batch_size=self.batch_size,
            loss=self.loss,
            learning_rate=self.finetune_learning_rate,
            precision=self.precision,
            seed=self.seed + 1_000_000,
        )


def parameter_space(config: SearchConfig, gan: GAN) -> dict[str, FloatDistribution]:
    """What a trial chooses, by name: "density/…" (log-uniform) or "threshold/…" (uniform) of each prunable layer.

    Densities lie in [1 − max_sparsity, 1]; thresholds between the layer's lowest score, which prunes nothing, and the
    one that prunes ``max_sparsity`` of it.
    """
    return _space(config, _scores(config, gan))


def _space(config: SearchConfig, scores: Mapping[str, Tensor]) -> dict[str, FloatDistribution]:
    if config.space == "layer-sparsity":
        return {f"density/{key}": FloatDistribution(1 - config.max_sparsity, 1.0, log=True) for key in scores}
    bounds = {}
    for key, values in scores.items():
        ordered = values.flatten().double().cpu().sort().values
        highest = ordered[pruned_count(config.max_sparsity, len(ordered))]
        bounds[f"threshold/{key}"] = FloatDistribution(float(ordered[0]), float(highest))
    return bounds


def dense_parameters(config: SearchConfig, space: Mapping[str, FloatDistribution]) -> dict[str, float]:
    """The values of the space that prune nothing."""
    return {name: 1.0 if config.space == "layer-sparsity" else part.low for name, part in space.items()}


def _scores(config: SearchConfig, gan: GAN) -> Mapping[str, Tensor]:
    """Scores of the EMA weights, which are the ones that a trial prunes."""
    needs_loss = "loss_fn" in get_score(config.score).needs
    loss_fn = generator_loss(gan, loss=config.loss, seed=config.seed) if needs_loss else None
    network = copy_gan(gan).generator
    network.load_state_dict(gan.generator_ema.state_dict())
    return score(network, config.score, loss_fn, seed=config.seed, sparsity=config.max_sparsity)


def _mask(config: SearchConfig, scores: Mapping[str, Tensor], parameters: Mapping[str, float]) -> Mask:
    if config.space == "layer-sparsity":
        wanted = {key: 1 - parameters[f"density/{key}"] for key in scores}
        return allocate(scores, layer_sparsity=wanted)
    return Mask({key: values >= parameters[f"threshold/{key}"] for key, values in scores.items()})


def build_trial(config: SearchConfig, gan: GAN, data: ImageData, parameters: Mapping[str, float]) -> GAN:
    """The GAN of one trial: a pruned and fine-tuned copy.

    A pure function of its arguments (on the CPU, bit for bit), if ``config.precision`` is not "auto".

    Args:
        config: of the search.
        gan: where all trials start; left as it is.
        data: its train split is used.
        parameters: a value for each name of :func:`parameter_space`.

    Returns:
        The copy, with its mask in ``masks["generator"]``.

    Raises:
        DivergenceError: if the fine-tuning diverges.
        ValueError: if the parameters are not those of the space.
    """
    scores = _scores(config, gan)
    names = _space(config, scores).keys()
    if names != parameters.keys():
        raise ValueError(f"parameters must be {', '.join(names)}, got {', '.join(parameters) or 'none'}")
    mask = _mask(config, scores, parameters)
    made = copy_gan(gan)
    made.generator.load_state_dict(gan.generator_ema.state_dict())
    made.masks.update({**gan.masks, "generator": mask})
    recalibrate_batchnorm(made.generator, seed=config.seed)
    made.generator_ema.load_state_dict(made.generator.state_dict())
    if config.finetune_steps:
        train(TrainState(made, config.finetuning()), data.train, show_progress=False)
    return made


def default_quality(config: SearchConfig, latent_seed: int) -> Quality:
    """The measure that the configuration names, of the EMA generator, always with the same latents."""

    def quality(gan: GAN, split: Split) -> Mapping[str, Any]:
        report = evaluate(
            gan.generator_ema,
            split,
            config.samples,
            seed=latent_seed,
            metrics=("fid",),
            mask=gan.masks["generator"],
        ).as_dict()
        wanted = (config.measure, f"{config.measure}_floor", "samples", "extractor")
        return {key: report[key] for key in wanted}

    return quality


def check_quality(config: SearchConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a quality function found, which must hold the measure that the configuration names.

    Raises:
        ValueError: if it does not.
        DivergenceError: if the measure is not finite.
    """
    value = found.get(config.measure)
    if value is None:
        raise ValueError(
            f"measure {config.measure!r} must be among what the quality function returns, got "
            f"{', '.join(key for key, entry in found.items() if entry is not None) or 'nothing'}"
        )
    if not math.isfinite(value):
        raise DivergenceError(f"the quality {config.measure} of the fine-tuned generator is {value}")
    return dict(found)


def trial_size(gan: GAN) -> dict[str, Any]:
    """What is left of a trial's generator: sparsities by layer, effective multiply-accumulates, weights kept."""
    mask = gan.masks["generator"]
    return {
        "layer_sparsities": {row["name"]: row["sparsity"] for row in mask.layers()},
        "effective_macs": effective_macs(gan.generator_ema),
        "sparsity": mask.sparsity,
        "nonzero": mask.kept,
    }


def make_objective(
    config: SearchConfig,
    gan: GAN,
    data: ImageData,
    measure: Quality,
    space: dict[str, FloatDistribution],
) -> Callable[[Trial], tuple[float, float]]:
    """What Optuna minimises: (quality on validation, effective multiply-accumulates) of a trial."""
    origin = provenance()  # of the code that is loaded now

    def objective(trial: Trial) -> tuple[float, float]:
        chosen = {
            name: trial.suggest_float(name, part.low, part.high, log=part.log) for name, part in space.items()
        }
        try:
            made = build_trial(config, gan, data, chosen)
            found = check_quality(config, measure(made, data.validation))
        except DivergenceError as error:
            trial.set_user_attr("diverged", str(error))
            raise
        size = trial_size(made)
        made_by = {**origin, "time": provenance()["time"], "precision": config.precision}
        for key, value in (("size", size), ("quality", found), ("provenance", made_by)):
            trial.set_user_attr(key, value)
        return float(found[config.measure]), float(size["effective_macs"])

    return objective
