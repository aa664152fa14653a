"""Search for layer-wise sparsities or thresholds: quality on validation against effective multiply-accumulates.

``python -m ganprune.experiments.search --trials 30 --storage search.sqlite3`` searches for the shipped DCGAN and writes
the Pareto front to the log. The same command goes on with a study that was stopped; several processes that share a
storage work on one study. ``--final-test`` ends it with the one look at the test split.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import Trial, TrialState
from torch import Tensor

from ganprune.allocation.choose import allocate
from ganprune.core.checks import check_choice, check_integer
from ganprune.core.device import best_precision
from ganprune.core.progress import progress
from ganprune.core.tensors import hash_weights
from ganprune.data.sources import mnist
from ganprune.data.splits import ImageData, Split
from ganprune.experiments.studies import SAMPLERS, SeededByTrial, open_storage, quiet
from ganprune.losses import generator_loss
from ganprune.lottery.tickets import copy_gan
from ganprune.masks.apply import apply_mask
from ganprune.masks.mask import Mask, check_sparsity, pruned_count
from ganprune.metrics.fidelity import evaluate
from ganprune.metrics.work import effective_macs
from ganprune.networks.checkpoints import PRETRAINED, load, load_pretrained
from ganprune.networks.gan import GAN
from ganprune.records.store import config_hash, provenance
from ganprune.scores.registry import get_score, score
from ganprune.training.config import TrainConfig
from ganprune.training.loop import DivergenceError, train
from ganprune.training.recalibration import recalibrate_batchnorm
from ganprune.training.state import TrainState

SPACES = ("layer-sparsity", "threshold")
MEASURES = ("digit_fid", "fid")

Quality = Callable[[GAN, Split], Mapping[str, Any]]
"""(fine-tuned GAN, split) → measurements by name; the one that the configuration names is minimised."""

_TEST = "final_test"
logger = logging.getLogger(__name__)


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
        precision: of the fine-tuning; "auto" is what the first worker finds faster, for all trials of the study.
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
        if "inputs" in get_score(self.score).parameters:
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


# --- One trial ------------------------------------------------------------------------------------


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


def _dense(config: SearchConfig, space: Mapping[str, FloatDistribution]) -> dict[str, float]:
    return {name: 1.0 if config.space == "layer-sparsity" else part.low for name, part in space.items()}


def _scores(config: SearchConfig, gan: GAN) -> Mapping[str, Tensor]:
    """Scores of the EMA weights, which are the ones that a trial prunes."""
    needs_loss = "loss_fn" in get_score(config.score).parameters
    loss_fn = generator_loss(gan, loss=config.loss, seed=config.seed) if needs_loss else None
    model = copy_gan(gan).generator
    model.load_state_dict(gan.generator_ema.state_dict())
    return score(model, config.score, loss_fn, seed=config.seed, sparsity=config.max_sparsity)


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
    apply_mask(made.generator, mask)
    recalibrate_batchnorm(made.generator, seed=config.seed)
    made.generator_ema.load_state_dict(made.generator.state_dict())
    made.masks = {**gan.masks, "generator": mask}
    if config.finetune_steps:
        train(TrainState(made, config.finetuning()), data.train, show_progress=False)
    return made


def _default_quality(config: SearchConfig, latent_seed: int) -> Quality:
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


def _measured(config: SearchConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    value = found.get(config.measure)
    if value is None:
        raise ValueError(
            f"measure {config.measure!r} must be among what the quality function returns, got "
            f"{', '.join(key for key, entry in found.items() if entry is not None) or 'nothing'}"
        )
    if not math.isfinite(value):
        raise DivergenceError(f"the quality {config.measure} of the fine-tuned generator is {value}")
    return dict(found)


def _size(gan: GAN) -> dict[str, Any]:
    mask = gan.masks["generator"]
    return {
        "layer_sparsities": {row["name"]: row["sparsity"] for row in mask.layers()},
        "effective_macs": effective_macs(gan.generator_ema),
        "sparsity": mask.sparsity,
        "nonzero": mask.kept,
    }


# --- The study ------------------------------------------------------------------------------------


def _start(config: SearchConfig, gan: GAN | None, data: ImageData | None) -> tuple[GAN, ImageData]:
    if gan is None:
        known = config.checkpoint in PRETRAINED
        gan = load_pretrained(config.checkpoint) if known else load(config.checkpoint)
    if "generator" in gan.masks:
        raise ValueError("gan must have a dense generator, got one with a mask")
    data = data if data is not None else mnist(gan.device)
    if config.measure == "digit_fid" and data.name != "mnist":
        raise ValueError(f"measure must be 'fid' on data other than MNIST, got 'digit_fid' on {data.name!r}")
    return gan, data


def open_study(
    config: SearchConfig,
    storage: str | Path | BaseStorage | None = None,
    gan: GAN | None = None,
    data: ImageData | None = None,
) -> Study:
    """The Optuna study of a configuration, created if the storage lacks it; no trial is run.

    Its name holds the configuration (but for ``trials``), the name of the data and the weights that trials start from,
    so other settings make another study in the same storage. A quality function of one's own is not part of it: give
    each its own ``config.name``.

    Args:
        config: of the search.
        storage: path of an SQLite file, an Optuna storage URL, or an Optuna storage; None for a file in the cache
            folder.
        gan: where trials start; None for ``config.checkpoint``.
        data: None for MNIST.

    Raises:
        ValueError: if the storage cannot be opened, the generator is pruned already, or the measure does not fit the
            data.
        CheckpointError: if there is no such checkpoint.
        TypeError: if the storage is of another type.
    """
    gan, data = _start(config, gan, data)
    settings = config_hash(dataclasses.replace(config, trials=1))
    weights = "-".join(hash_weights(network) for network in (gan.generator_ema, gan.discriminator))
    with quiet():
        return optuna.create_study(
            storage=open_storage(storage),
            sampler=SeededByTrial(config.sampler, config.seed),
            study_name=f"{config.name}/{settings}/{data.name}/{weights}",
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )


def _resolved(config: SearchConfig, study: Study, gan: GAN) -> SearchConfig:
    """With the precision that the study began with: all its trials, and their test, are trained alike."""
    if config.precision != "auto":
        return config
    if "precision" not in study.user_attrs:
        study.set_user_attr("precision", best_precision(gan.device))
    return dataclasses.replace(config, precision=study.user_attrs["precision"])


def _finished(study: Study) -> int:
    """Trials that count: complete ones and those whose fine-tuning diverged, not those that were interrupted."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return sum(trial.state == TrialState.COMPLETE or "diverged" in trial.user_attrs for trial in trials)


def _enqueue_dense(study: Study, dense: dict[str, float]) -> None:
    """Makes the dense network the next trial, unless it was tried, is being tried, or waits."""
    trials = (trial for trial in study.get_trials(deepcopy=False) if "dense" in trial.user_attrs)
    if all(trial.state == TrialState.FAIL and "diverged" not in trial.user_attrs for trial in trials):
        study.enqueue_trial(dense, user_attrs={"dense": True})


def search(
    config: SearchConfig,
    storage: str | Path | BaseStorage | None = None,
    gan: GAN | None = None,
    data: ImageData | None = None,
    quality: Quality | None = None,
    show_progress: bool = True,
) -> Study:
    """Runs trials until the study has ``config.trials`` of them, and returns it.

    A stopped search goes on with those that are finished when it is called again; the trial that was interrupted is not
    counted. Several processes may call it with one storage: each stops when the study has enough, so it may end with
    one trial more for each further worker. What a fresh search by one worker tries is determined by the seed.

    Args:
        config: what is searched.
        storage: as for :func:`open_study`.
        gan: where trials start; None for ``config.checkpoint``. It is left as it is.
        data: fine-tuned on its train split, measured on its validation split; None for MNIST.
        quality: measures a fine-tuned GAN on a split; None for ``config.measure`` of the EMA generator, with the same
            latents in every trial.
        show_progress: a progress bar on standard error.

    Returns:
        The study; see :func:`trial_rows` and :func:`pareto_rows`. A trial whose fine-tuning diverged counts, but has no
        row.

    Raises:
        ValueError: as :func:`open_study` does; if the final test was made and more trials are asked for.
    """
    gan, data = _start(config, gan, data)
    study = open_study(config, storage, gan, data)
    measure = quality or _default_quality(config, latent_seed=config.seed)
    config, space, origin = _resolved(config, study, gan), parameter_space(config, gan), provenance()

    def objective(trial: Trial) -> tuple[float, float]:
        chosen = {
            name: trial.suggest_float(name, part.low, part.high, log=part.log) for name, part in space.items()
        }
        try:
            made = build_trial(config, gan, data, chosen)
            found = _measured(config, measure(made, data.validation))
        except DivergenceError as error:
            trial.set_user_attr("diverged", str(error))
            raise
        size = _size(made)
        # by the code that was loaded at the start
        made_by = {**origin, "time": provenance()["time"], "precision": config.precision}
        for key, value in (("size", size), ("quality", found), ("provenance", made_by)):
            trial.set_user_attr(key, value)
        return float(found[config.measure]), float(size["effective_macs"])

    done = min(_finished(study), config.trials)
    with quiet(), progress(config.trials, "search", done, show_progress) as bar:
        optuna.storages.fail_stale_trials(study)  # those of a killed process
        while (done := _finished(study)) < config.trials:
            if _TEST in study.user_attrs:  # another worker may have made it since
                raise ValueError(
                    f"trials must be at most {done}: the final test of this study was made, and what is tried after "
                    f"it could not be tested, got {config.trials}; search with another seed"
                )
            bar.update(done - bar.n)
            _enqueue_dense(study, _dense(config, space))
            study.optimize(objective, n_trials=1, catch=(DivergenceError,))
        bar.update(config.trials - bar.n)
    return study


# --- What came out --------------------------------------------------------------------------------


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """One row per complete trial, in their order.

    Returns:
        Rows with trial, layer_sparsities (by weight name), the measured quality on validation and what came with it
        (such as its floor), effective_macs, sparsity, nonzero (prunable weights kept), and pareto: whether no other
        trial is as good in both objectives and better in one.
    """
    front = {trial.number for trial in study.best_trials}
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [
        {
            "trial": trial.number,
            **trial.user_attrs["size"],
            **trial.user_attrs["quality"],
            "pareto": trial.number in front,
        }
        for trial in sorted(complete, key=lambda trial: trial.number)
    ]


def pareto_rows(study: Study) -> list[dict[str, Any]]:
    """The rows of :func:`trial_rows` on the Pareto front, from few to many effective multiply-accumulates.

    Of equal networks (two workers may try one twice) the first is listed.
    """
    rows: list[dict[str, Any]] = []
    for row in sorted(trial_rows(study), key=lambda row: (row["effective_macs"], row["trial"])):
        twins = (other["layer_sparsities"] == row["layer_sparsities"] for other in rows)
        if row["pareto"] and not any(twins):
            rows.append(row)
    return rows


def final_test(
    config: SearchConfig,
    storage: str | Path | BaseStorage | None = None,
    gan: GAN | None = None,
    data: ImageData | None = None,
    quality: Quality | None = None,
    trials: Iterable[int] | None = None,
) -> list[dict[str, Any]]:
    """The one look at the test split: builds the chosen trials again and measures them there.

    It comes at the end, so it is refused while a worker is at a trial. The choice is written to the study before
    anything is measured, and each row as soon as it is. A second call returns these rows and measures nothing; after a
    stop, what is missing of the same choice is measured. The default quality uses other latents than the search, which
    has chosen by its own.

    Args:
        config: of the search.
        storage: as for :func:`open_study`.
        gan: as for :func:`search`.
        data: as for :func:`search`.
        quality: as for :func:`search`.
        trials: numbers of the trials; None for the Pareto front and the dense network.

    Returns:
        The rows of :func:`trial_rows` for these trials, with the measurements on test, and when and with what they were
        made, under names that begin with ``test_``.

    Raises:
        ValueError: if there are no such complete trials, a trial is running, or other trials were chosen for the test
            before.
        RuntimeError: if a network that was built again is not of the size that was recorded.
    """
    gan, data = _start(config, gan, data)
    study = open_study(config, storage, gan, data)
    record = study.user_attrs.get(_TEST)
    wanted = None if trials is None else sorted(set(trials))
    if record is not None and wanted not in (None, record["trials"]):
        raise ValueError(
            f"trials must be {record['trials']}, which were chosen for the one look at test before, got {wanted}"
        )
    if record is None:
        with quiet():
            optuna.storages.fail_stale_trials(study)
        running = [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
        if running:
            raise ValueError(
                f"storage must hold no running trial, as the test comes at the end; trials {running} run: wait for "
                "their workers, or tell the study of those that were killed (see open_storage)"
            )
    rows = {row["trial"]: row for row in trial_rows(study)}
    if record is None:
        if wanted is None:
            wanted = sorted({row["trial"] for row in pareto_rows(study)} | _first_dense(rows))
        if not wanted or not set(wanted) <= rows.keys():
            raise ValueError(f"trials must be among the complete ones, {sorted(rows)}, got {wanted}")
        record = {"trials": wanted, "provenance": provenance()}
        study.set_user_attr(_TEST, record)
    measure = quality or _default_quality(config, latent_seed=config.seed + 1)
    config = _resolved(config, study, gan)
    trials_by_number = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    tested = []
    for number in record["trials"]:
        key = f"{_TEST}/{number}"
        if key not in study.user_attrs:
            trial = trials_by_number[number]
            precision = trial.user_attrs["provenance"].get("precision", config.precision)
            made = build_trial(dataclasses.replace(config, precision=precision), gan, data, trial.params)
            if _size(made) != trial.user_attrs["size"]:
                raise RuntimeError(
                    f"trial {number} has another size when built again; test it where it was made"
                )
            study.set_user_attr(key, _measured(config, measure(made, data.test)) | provenance())
        tested.append({**rows[number], **{f"test_{k}": v for k, v in study.user_attrs[key].items()}})
    return tested


def _first_dense(rows: Mapping[int, Mapping[str, Any]]) -> set[int]:
    return set([number for number, row in sorted(rows.items()) if row["sparsity"] == 0][:1])


def main() -> None:
    """The command line of this module."""
    default = SearchConfig()
    parser = argparse.ArgumentParser(description="Search for layer-wise sparsities or thresholds.")
    parser.add_argument("--storage", help="SQLite file or Optuna storage URL (default: in the cache folder)")
    parser.add_argument("--out", type=Path, help="write the rows of the front here, as JSON lines")
    parser.add_argument("--final-test", action="store_true", help="end with the one look at the test split")
    for field in dataclasses.fields(default):
        if field.name != "name":
            value = getattr(default, field.name)
            choices = {"space": SPACES, "sampler": SAMPLERS, "measure": MEASURES}.get(field.name)
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(
                flag, type=type(value), default=value, choices=choices, help=f"default {value}"
            )
    options = vars(parser.parse_args())
    storage, out, test = (options.pop(name) for name in ("storage", "out", "final_test"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = SearchConfig(**options)
    except ValueError as error:
        parser.error(str(error))
    study = search(config, storage)
    rows = final_test(config, storage) if test else pareto_rows(study)
    origins = {trial.number: trial.user_attrs["provenance"] for trial in study.trials if trial.values}
    rows = [{**row, **origins[row["trial"]]} for row in rows]
    for row in rows:
        logger.info("%s", json.dumps(row))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
