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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import TrialState

from ganprune.core.device import best_precision
from ganprune.core.files import replacing
from ganprune.core.progress import progress
from ganprune.core.tensors import hash_weights
from ganprune.data.sources import mnist
from ganprune.data.splits import ImageData
from ganprune.experiments.studies import SAMPLERS, SeededByTrial, open_storage, quiet
from ganprune.experiments.trials import (
    MEASURES,
    SPACES,
    Quality,
    SearchConfig,
    build_trial,
    check_quality,
    default_quality,
    dense_parameters,
    make_objective,
    parameter_space,
    trial_size,
)
from ganprune.networks.checkpoints import PRETRAINED, load, load_pretrained
from ganprune.networks.gan import GAN
from ganprune.records.store import config_hash, provenance
from ganprune.training.loop import DivergenceError

TEST = "final_test"
"""The study's attribute that holds the choice of trials for the final test; each row is under ``final_test/number``."""

logger = logging.getLogger(__name__)


def _start(config: SearchConfig, gan: GAN | None, data: ImageData | None) -> tuple[GAN, ImageData]:
    if gan is None:
        known = config.checkpoint in PRETRAINED
        gan = load_pretrained(config.checkpoint) if known else load(config.checkpoint)
    if "generator" in gan.masks:
        raise ValueError("gan must have a dense generator, got one with a mask")
    gan.masks.check()
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


def _resolve_precision(config: SearchConfig, study: Study, gan: GAN) -> SearchConfig:
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


def run_search(
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
    measure = quality or default_quality(config, latent_seed=config.seed)
    config, space = _resolve_precision(config, study, gan), parameter_space(config, gan)
    objective = make_objective(config, gan, data, measure, space)
    done = min(_finished(study), config.trials)
    with quiet(), progress(config.trials, "search", done, show_progress) as bar:
        optuna.storages.fail_stale_trials(study)  # those of a killed process
        while (done := _finished(study)) < config.trials:
            if TEST in study.user_attrs:  # another worker may have made it since
                raise ValueError(
                    f"trials must be at most {done}: the final test of this study was made, and what is tried after "
                    f"it could not be tested, got {config.trials}; search with another seed"
                )
            bar.update(done - bar.n)
            _enqueue_dense(study, dense_parameters(config, space))
            study.optimize(objective, n_trials=1, catch=(DivergenceError,))
        bar.update(config.trials - bar.n)
    return study


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
    rows = {row["trial"]: row for row in trial_rows(study)}
    chosen = _choose_for_test(study, rows, None if trials is None else sorted(set(trials)))
    measure = quality or default_quality(config, latent_seed=config.seed + 1)
    config = _resolve_precision(config, study, gan)
    by_number = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    tested = []
    for number in chosen:
        key, trial = f"{TEST}/{number}", by_number[number]
        if key not in study.user_attrs:
            precision = trial.user_attrs["provenance"].get("precision", config.precision)
            made = build_trial(dataclasses.replace(config, precision=precision), gan, data, trial.params)
            if trial_size(made) != trial.user_attrs["size"]:
                raise RuntimeError(
                    f"trial {number} has another size when built again; test it where it was made"
                )
            study.set_user_attr(key, check_quality(config, measure(made, data.test)) | provenance())
        tested.append({**rows[number], **{f"test_{k}": v for k, v in study.user_attrs[key].items()}})
    return tested


def _choose_for_test(study: Study, rows: dict[int, dict[str, Any]], wanted: list[int] | None) -> list[int]:
    """The trials of the one look at test: as chosen before, or from now on those wanted, or the front and the dense."""
    if TEST in study.user_attrs:
        before: list[int] = study.user_attrs[TEST]["trials"]
        if wanted not in (None, before):
            raise ValueError(
                f"trials must be {before}, which were chosen for the one look at test before, got {wanted}"
            )
        return before
    with quiet():
        optuna.storages.fail_stale_trials(study)
    running = [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    if running:
        raise ValueError(
            f"storage must hold no running trial, as the test comes at the end; trials {running} run: wait for "
            "their workers, or tell the study of those that were killed (see open_storage)"
        )
    if wanted is None:
        dense = [number for number, row in sorted(rows.items()) if row["sparsity"] == 0]
        wanted = sorted({row["trial"] for row in pareto_rows(study)} | set(dense[:1]))
    if not wanted or not set(wanted) <= rows.keys():
        raise ValueError(f"trials must be among the complete ones, {sorted(rows)}, got {wanted}")
    study.set_user_attr(TEST, {"trials": wanted, "provenance": provenance()})
    return wanted


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
    study = run_search(config, storage)
    rows = final_test(config, storage) if test else pareto_rows(study)
    origins = {trial.number: trial.user_attrs["provenance"] for trial in study.trials if trial.values}
    rows = [{**row, **origins[row["trial"]]} for row in rows]
    for row in rows:
        logger.info("%s", json.dumps(row))
    if out is not None:
        with replacing(out) as temporary:
            temporary.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
