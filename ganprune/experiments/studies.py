"""What a search needs of Optuna: a sampler that is seeded trial by trial, and storages by path or URL."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ganprune.core.checks import check_choice
from ganprune.core.files import cache_dir
from ganprune.core.random import step_seed

SAMPLERS = ("tpe", "nsga2")
POPULATION = 10
"""Trials per generation of the "nsga2" sampler: few, because every trial trains a network."""

HEARTBEAT, GRACE = 30, 120
"""Seconds between signs of life of a running trial, and without one until it counts as dead."""


class SeededByTrial(BaseSampler):
    """A fresh multi-objective sampler for each trial, seeded by (seed, number of the trial).

    What a trial tries then depends on the seed, its number and the finished trials alone: a study that was stopped
    between two trials goes on as if it had not been, and workers that share it draw different numbers.

    Args:
        kind: "tpe" (Ozaki et al. 2020) or "nsga2" (Deb et al. 2002).
        seed: of the whole study.

    Raises:
        ValueError: if there is no such sampler.
    """

    def __init__(self, kind: str, seed: int) -> None:
        check_choice("sampler", kind, SAMPLERS)
        self.kind, self.seed = kind, seed
        self._inner = self._fresh(0)

    def _fresh(self, number: int) -> BaseSampler:
        seed = step_seed(self.seed, number, "search")
        if self.kind == "nsga2":
            return NSGAIISampler(population_size=POPULATION, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(seed=seed, constant_liar=True)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seeds the sampler of this trial."""
        self._inner = self._fresh(trial.number)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are drawn together."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of the parameters that are drawn together."""
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of one parameter that is drawn by itself."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Lets the sampler write down what it needs."""
        self._inner.after_trial(study, trial, state, values)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's log line per trial, and its remark that heartbeats are experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def open_storage(storage: str | Path | BaseStorage | None = None) -> BaseStorage:
    """The Optuna storage that is meant; an embedded SQLite file is made if it is not there.

    Running trials leave signs of life in a database, so that those of a killed process are noticed after two minutes.
    Other Optuna storages (on a journal, in memory) have no such signs: there a killed trial counts as running until
    somebody tells the study, by ``study.tell(number, state=TrialState.FAIL)``.

    Args:
        storage: path of an SQLite file; URL of a database, as Optuna and SQLAlchemy write it; an Optuna storage, such
            as one on a journal; None for a file in the cache folder.

    Raises:
        TypeError: if it is something else.
        ValueError: if it cannot be opened.
    """
    if isinstance(storage, BaseStorage):
        return storage
    if storage is None:
        storage = cache_dir() / "search.sqlite3"
    if not isinstance(storage, str | Path):
        raise TypeError(
            f"storage must be a path, an Optuna storage URL or an Optuna storage, got {type(storage).__name__}"
        )
    url = str(storage)
    if "://" not in url:
        path = Path(url).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{quote(str(path))}"  # "?" and "%" mean something in a URL
    with quiet():
        return _connected(url)


def _connected(url: str, tries: int = 4) -> RDBStorage:
    """Tried again, because another worker may be making the same tables at this moment."""
    waiting = {"connect_args": {"timeout": 60}}  # seconds for other writers
    options = waiting if url.startswith("sqlite") else {}
    try:
        return RDBStorage(url, options, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    except Exception as error:  # what database drivers raise is of no common class
        if tries == 1:
            message = (
                "storage must be the path of an SQLite file, or the URL of a database that SQLAlchemy reaches with "
                f"the drivers installed here, got {url!r} ({type(error).__name__}: {error})"
            )
            raise ValueError(re.sub(r"://\S*@", "://…@", message)) from error  # without a password
    time.sleep(0.25)
    return _connected(url, tries - 1)
