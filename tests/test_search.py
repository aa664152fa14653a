"""The search: reproducible, resumable, shared; its front against brute force; test looked at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from tools.search import Quality, config
from tools.small_data import small_data

import ganprune as gp
from ganprune import metrics
from ganprune.core.tensors import CheckpointError
from ganprune.experiments import search as module
from ganprune.experiments import studies
from ganprune.experiments import trials as trials_module
from ganprune.experiments.search import final_test, open_study, pareto_rows, run_search, trial_rows
from ganprune.experiments.trials import SPACES, SearchConfig, build_trial


@pytest.fixture(scope="module")
def data():
    return small_data()


@pytest.fixture
def gan():
    return gp.mlp_gan(hidden=(6, 5), latent_dim=4, seed=1, device="cpu")


def complete(study):
    return study.get_trials(states=(TrialState.COMPLETE,))


class TestStudy:
    def test_the_dense_network_is_first_and_rows_say_what_was_made(self, gan, data, tmp_path):
        study = run_search(config(), tmp_path / "deep" / "s.sqlite3", gan, data, Quality())
        rows = trial_rows(study)
        assert [row["trial"] for row in rows] == [0, 1, 2, 3, 4]
        assert rows[0]["sparsity"] == 0 and not any(row["sparsity"] == 0 for row in rows[1:])
        for row, trial in zip(rows, study.trials, strict=True):
            made = build_trial(config(), gan, data, trial.params)
            weights = gp.prunable_weights(made.generator_ema)
            nonzero = {key: int((weight != 0).sum()) for key, weight in weights.items()}
            assert row["effective_macs"] == row["nonzero"] == sum(nonzero.values())  # linear layers alone
            assert row["layer_sparsities"] == {
                key: pytest.approx(1 - nonzero[key] / weight.numel()) for key, weight in weights.items()
            }
            assert row["sparsity"] == pytest.approx(1 - row["nonzero"] / (24 + 30 + 5 * 784))
            assert row["digit_fid"] == Quality()(made, data.validation)["digit_fid"] == trial.values[0]
            assert row["split"] == "validation" and trial.values[1] == row["effective_macs"]
            assert {"torch", "commit"} <= trial.user_attrs["provenance"].keys()

    @pytest.mark.parametrize("sampler", studies.SAMPLERS)
    @pytest.mark.parametrize("space", SPACES)
    def test_a_seed_determines_a_fresh_run_and_one_that_went_on(self, gan, data, tmp_path, space, sampler):
        settings = {"space": space, "sampler": sampler}
        whole = run_search(
            config(trials=12, **settings), optuna.storages.InMemoryStorage(), gan, data, Quality()
        )
        storage = tmp_path / "s.sqlite3" if sampler == "nsga2" else optuna.storages.InMemoryStorage()
        run_search(config(trials=6, **settings), storage, gan, data, Quality())
        late = Quality()
        parts = run_search(config(trials=12, **settings), storage, gan, data, late)
        assert len(late.splits) == 6
        assert trial_rows(parts) == trial_rows(whole)
        other = run_search(
            config(trials=3, seed=1, **settings), optuna.storages.InMemoryStorage(), gan, data, Quality()
        )
        assert trial_rows(other)[0]["digit_fid"] == trial_rows(whole)[0]["digit_fid"]
        assert trial_rows(other)[1] != trial_rows(whole)[1]

    def test_a_finished_study_runs_nothing(self, gan, data, tmp_path):
        run_search(config(), tmp_path / "s.sqlite3", gan, data, Quality())
        quality = Quality()
        study = run_search(config(), f"sqlite:///{tmp_path / 's.sqlite3'}", gan, data, quality)
        assert (len(study.trials), quality.splits) == (5, [])

    @pytest.mark.parametrize("at", [1, 3])
    def test_an_interrupted_trial_does_not_count(self, gan, data, at):
        storage = optuna.storages.InMemoryStorage()
        with pytest.raises(KeyboardInterrupt):
            run_search(config(), storage, gan, data, Quality(interrupt_at=at))
        assert len(complete(open_study(config(), storage, gan, data))) == at - 1
        quality = Quality()
        study = run_search(config(), storage, gan, data, quality)
        assert (len(complete(study)), len(quality.splits)) == (5, 6 - at)
        assert sum(row["sparsity"] == 0 for row in trial_rows(study)) == 1

    @pytest.mark.parametrize("at", [1, 3])
    def test_a_trial_that_diverged_counts_and_has_no_row(self, gan, data, at):
        quality = Quality(bad_at=at)
        study = run_search(config(), optuna.storages.InMemoryStorage(), gan, data, quality)
        assert len(quality.splits) == len(study.trials) == 5
        assert [row["trial"] for row in trial_rows(study)] == [n for n in range(5) if n != at - 1]
        assert "nan" in study.trials[at - 1].user_attrs["diverged"]

    def test_a_trial_is_dated_by_itself_and_its_commit_is_that_of_the_start(self, gan, data, monkeypatch):
        calls = iter(range(99))
        monkeypatch.setattr(trials_module, "provenance", lambda: {"commit": (at := next(calls)), "time": at})
        study = run_search(config(trials=3), optuna.storages.InMemoryStorage(), gan, data, Quality())
        assert [trial.user_attrs["provenance"]["commit"] for trial in study.trials] == [0, 0, 0]
        assert [trial.user_attrs["provenance"]["time"] for trial in study.trials] == [1, 2, 3]

    def test_the_precision_of_the_first_worker_holds_for_all_trials(self, gan, data, monkeypatch):
        """Though another process that works on the study would choose another one."""
        storage, settings = optuna.storages.InMemoryStorage(), {"finetune_steps": 1, "precision": "auto"}
        for trials, precision in ((2, "bfloat16"), (3, "float32")):
            monkeypatch.setenv("GANPRUNE_PRECISION", precision)
            study = run_search(config(trials=trials, **settings), storage, gan, data, Quality())
        assert {trial.user_attrs["provenance"]["precision"] for trial in study.trials} == {"bfloat16"}
        rows = final_test(config(**settings), storage, gan, data, Quality(), trials=[0, 2])
        assert [row["test_digit_fid"] for row in rows] == [row["digit_fid"] for row in rows]

    def test_other_settings_weights_or_data_make_another_study(self, gan, data, tmp_path):
        storage = studies.open_storage(tmp_path / "s.sqlite3")
        other = gp.mlp_gan(hidden=(6, 5), latent_dim=4, seed=2, device="cpu")
        names = [
            open_study(settings, storage, network, split).study_name
            for settings, network, split in (
                (config(), gan, data),
                (config(trials=9), gan, data),
                (config(seed=3), gan, data),
                (config(), other, data),
                (config(measure="fid"), gan, data),
                (config(measure="fid"), gan, small_data("digits")),
            )
        ]
        assert names[0] == names[1] and len(set(names)) == 5

    def test_what_it_refuses(self, gan, data, tmp_path):
        (tmp_path / "text").write_text("no database" * 100)
        urls = (
            "nosuch://user:secret@host/name",
            "postgresql://user:sec/ret@host:port/name",
            "x://user:se@cret@h/n",
        )
        for storage in (tmp_path / "text", tmp_path, *urls):
            with pytest.raises(
                ValueError, match="storage must be the path of an SQLite file, or the URL"
            ) as error:
                open_study(config(), storage, gan, data)
            assert not any(part in str(error.value) for part in ("secret", "sec/", "cret@"))
        with pytest.raises(TypeError, match="storage must be a path, .*got int"):
            open_study(config(), 3, gan, data)
        memory = optuna.storages.InMemoryStorage()
        with pytest.raises(ValueError, match="measure must be 'fid' on data other than MNIST, .*'digits'"):
            open_study(config(), memory, gan, small_data("digits"))
        with pytest.raises(CheckpointError, match="not found"):
            open_study(config(checkpoint=str(tmp_path / "none.safetensors")), memory, None, data)
        with pytest.raises(ValueError, match="measure 'digit_fid' must be among .*got accuracy"):
            run_search(config(), memory, gan, data, lambda gan, split: {"accuracy": 1.0, "digit_fid": None})
        gp.prune(gan, 0.5)
        with pytest.raises(ValueError, match="gan must have a dense generator, got one with a mask"):
            run_search(config(), memory, gan, data, Quality())


WORKER = textwrap.dedent(
    """
    import sys, time
    sys.path.insert(0, sys.argv[1])
    import ganprune as gp
    from ganprune.experiments.search import run_search
    from tools.search import Quality, config
    from tools.small_data import small_data

    class Slow(Quality):
        def __call__(self, gan, split):
            time.sleep(0.3)
            print("measuring", flush=True)
            time.sleep(float(sys.argv[3]))
            return super().__call__(gan, split)

    gan = gp.mlp_gan(hidden=(6, 5), latent_dim=4, seed=1, device="cpu")
    run_search(config(), sys.argv[2], gan, small_data(), Slow())
    """
)


def workers(storage, seconds, number=1):
    """Searches in processes of their own, each of whose trials takes so long, in the midst of their first trials."""
    arguments = [os.path.dirname(__file__), str(storage), str(seconds)]
    command, pipes = (
        [sys.executable, "-c", WORKER, *arguments],
        {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(number)]
    for process in processes:
        assert process.stdout.readline() == "measuring\n", process.communicate()
    return processes


def test_a_killed_search_goes_on(gan, data, tmp_path, monkeypatch):
    (process,) = workers(tmp_path / "s.sqlite3", seconds=600)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    monkeypatch.setattr(studies, "HEARTBEAT", 1)
    monkeypatch.setattr(studies, "GRACE", 1)
    time.sleep(2.1)  # longer than the grace, so that the dead trial is recognised
    quality = Quality()
    study = run_search(config(), tmp_path / "s.sqlite3", gan, data, quality)
    assert (len(complete(study)), len(quality.splits)) == (5, 5)
    assert [trial.number for trial in study.trials if trial.state == TrialState.FAIL] == [0]
    assert [row["trial"] for row in trial_rows(study) if row["sparsity"] == 0] == [1]


def test_workers_share_a_study(gan, data, tmp_path):
    """Two begin together, and so make the file, its tables and the study at the same moment; a third joins them."""
    processes = workers(tmp_path / "s.sqlite3", seconds=1, number=2)
    quality = Quality()
    study = run_search(config(), tmp_path / "s.sqlite3", gan, data, quality)
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    rows = trial_rows(study)
    assert 5 <= len(rows) <= 7 and 1 <= len(quality.splits) < len(rows)
    assert [row["trial"] for row in rows] == list(range(len(rows)))
    drawn = {tuple(trial.params.values()) for trial in study.trials}
    dense = sum(row["sparsity"] == 0 for row in rows)  # two that begin together may both try it
    assert 1 <= dense <= 2 and len(drawn) == len(rows) - (dense - 1)
    assert sum(row["sparsity"] == 0 for row in pareto_rows(study)) == 1
    for row, trial in zip(rows, study.trials, strict=True):
        made = build_trial(config(), gan, data, trial.params)
        assert row["digit_fid"] == Quality()(made, data.validation)["digit_fid"]


def test_workers_on_a_journal_share_a_study(gan, data, tmp_path):
    """A storage without a server or a database; other processes write to it while a trial runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        first, second = (JournalStorage(JournalFileBackend(str(tmp_path / "journal"))) for _ in range(2))

    class Shared(Quality):
        def __call__(self, gan_, split):
            if len(self.splits) == 1:  # in the midst of its second trial, another worker makes two
                self.splits.append("validation")
                other = Quality()
                run_search(config(trials=3), second, gan, data, other)
                assert len(other.splits) == 2
                with pytest.raises(ValueError, match=r"no running trial, .* trials \[1\] run: wait"):
                    final_test(config(), second, gan, data, other)
                self.splits.pop()
            return super().__call__(gan_, split)

    quality = Shared()
    study = run_search(config(trials=4), first, gan, data, quality)
    assert len(quality.splits) == 2 and [row["trial"] for row in trial_rows(study)] == [0, 1, 2, 3]
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 4
    assert sum(row["sparsity"] == 0 for row in trial_rows(study)) == 1


def test_a_worker_stops_when_another_makes_the_final_test(gan, data):
    storage = optuna.storages.InMemoryStorage()

    class Tested(Quality):
        def __call__(self, gan_, split):
            found = super().__call__(gan_, split)
            if len(self.splits) == 3:
                open_study(config(), storage, gan, data).set_user_attr("final_test", {"trials": [0, 1]})
            return found

    quality = Tested()
    with pytest.raises(ValueError, match="trials must be at most 3: the final test .* got 5"):
        run_search(config(), storage, gan, data, quality)
    assert len(quality.splits) == 3


@pytest.mark.parametrize("name", ["what?.sqlite3", "100%25.sqlite3", "a b#c.sqlite3", "größe.sqlite3"])
def test_a_file_may_have_any_name(tmp_path, name):
    studies.open_storage(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_workers_that_meet_while_the_tables_are_made_try_again(tmp_path, monkeypatch):
    made, real = [], studies.RDBStorage

    def busy(*arguments, **options):
        made.append(arguments)
        if len(made) == 1:
            raise RuntimeError("table studies already exists")
        return real(*arguments, **options)

    monkeypatch.setattr(studies, "RDBStorage", busy)
    assert isinstance(studies.open_storage(tmp_path / "s.sqlite3"), real)
    assert len(made) == 2 and (tmp_path / "s.sqlite3").is_file()


def test_the_default_storage_lies_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path))
    studies.open_storage()
    assert (tmp_path / "search.sqlite3").is_file()


class TestFront:
    @given(values=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
    def test_equals_brute_force(self, values):
        study = optuna.create_study(directions=["minimize", "minimize"])
        for number, (quality, macs) in enumerate(values):
            size = {"layer_sparsities": {"w": number}, "effective_macs": macs, "sparsity": 0.5, "nonzero": 1}
            attributes = {"size": size, "quality": {"digit_fid": quality}}
            study.add_trial(create_trial(values=(quality, macs), user_attrs=attributes))
        front = [
            n
            for n, (a, b) in enumerate(values)
            if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in values)
        ]
        assert [row["trial"] for row in trial_rows(study) if row["pareto"]] == front
        expected = sorted(front, key=lambda n: (values[n][1], n))
        assert [row["trial"] for row in pareto_rows(study)] == expected

    def test_of_equal_networks_the_first_is_listed(self):
        study = optuna.create_study(directions=["minimize", "minimize"])
        size = {"layer_sparsities": {"w": 0.5}, "effective_macs": 2, "sparsity": 0.5, "nonzero": 1}
        for _ in range(2):
            attributes = {"size": size, "quality": {"digit_fid": 1.0}}
            study.add_trial(create_trial(values=(1.0, 2.0), user_attrs=attributes))
        assert [row["trial"] for row in pareto_rows(study)] == [0]
        assert [row["pareto"] for row in trial_rows(study)] == [True, True]


class TestFinalTest:
    @pytest.fixture
    def storage(self, gan, data):
        quality, storage = Quality(), optuna.storages.InMemoryStorage()
        run_search(config(trials=8), storage, gan, data, quality)
        assert set(quality.splits) == {"validation"}
        return storage

    def test_looks_once_at_the_front_and_the_dense_network(self, gan, data, tmp_path):
        quality, storage = Quality(), tmp_path / "s.sqlite3"
        run_search(config(trials=8), storage, gan, data, Quality())
        rows = final_test(config(), storage, gan, data, quality)
        study = open_study(config(), storage, gan, data)
        front = {row["trial"] for row in pareto_rows(study)} | {0}
        assert [row["trial"] for row in rows] == sorted(front)
        assert quality.splits == ["test"] * len(front)
        recorded = {row["trial"]: row for row in trial_rows(study)}
        for row in rows:
            assert row["test_split"] == "test" and row["test_digit_fid"] == row["digit_fid"]
            assert recorded[row["trial"]].items() <= row.items()
        again = Quality()
        assert final_test(config(), storage, gan, data, again) == rows
        assert final_test(config(), storage, gan, data, again, trials=sorted(front)) == rows
        assert again.splits == []
        assert {"torch", "time"} <= study.user_attrs["final_test"]["provenance"].keys()
        assert all({"test_torch", "test_commit", "test_time"} <= row.keys() for row in rows)

    def test_another_choice_or_more_trials_are_refused_afterwards(self, gan, data, storage):
        final_test(config(), storage, gan, data, Quality(), trials=[2, 1])
        quality = Quality()
        with pytest.raises(
            ValueError, match=r"trials must be \[1, 2\], which were chosen .* before, got \[3\]"
        ):
            final_test(config(), storage, gan, data, quality, trials=[3])
        with pytest.raises(ValueError, match="trials must be at most 8: the final test .* got 9"):
            run_search(config(trials=9), storage, gan, data, quality)
        assert quality.splits == []
        assert len(run_search(config(trials=8), storage, gan, data, quality).trials) == 8

    def test_after_a_stop_only_what_is_missing_is_measured(self, gan, data, storage):
        with pytest.raises(KeyboardInterrupt):
            final_test(config(), storage, gan, data, Quality(interrupt_at=2), trials=[0, 3, 4])
        quality = Quality()
        rows = final_test(config(), storage, gan, data, quality)
        assert [row["trial"] for row in rows] == [0, 3, 4] and quality.splits == ["test"] * 2

    def test_what_it_refuses(self, gan, data, storage, monkeypatch):
        quality = Quality()
        with pytest.raises(
            ValueError, match=r"trials must be among the complete ones, \[0, 1, .*\], got \[99\]"
        ):
            final_test(config(), storage, gan, data, quality, trials=[99])
        with pytest.raises(ValueError, match=r"complete ones, \[\], got \[\]"):
            final_test(config(seed=5), storage, gan, data, quality)
        running = open_study(config(trials=8), storage, gan, data).ask()
        with pytest.raises(ValueError, match=rf"no running trial, .* trials \[{running.number}\] run"):
            final_test(config(), storage, gan, data, quality)
        open_study(config(), storage, gan, data).tell(running.number, state=TrialState.FAIL)
        monkeypatch.setattr(module, "trial_size", lambda gan: {"nonzero": 1})
        with pytest.raises(RuntimeError, match="trial 0 has another size when built again"):
            final_test(config(), storage, gan, data, quality, trials=[0])
        assert quality.splits == []


def test_the_command_line_says_what_is_wrong(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["search", "--max-sparsity", "1"])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert "search: error: max_sparsity must be in [0, 1), got 1.0" in capsys.readouterr().err


def test_a_real_search_measures_digit_fid_with_its_floor(data, tmp_path, monkeypatch):
    """From a checkpoint, by the command line, fine-tuning and the classifier included."""
    gan = gp.dcgan(width=2, latent_dim=4, device="cpu")
    gp.save(tmp_path / "gan.safetensors", gan)
    monkeypatch.setattr(module, "mnist", lambda device: data)
    monkeypatch.setenv("GANPRUNE_DEVICE", "cpu")
    arguments = ["--trials", "2", "--finetune-steps", "2", "--samples", "40", "--batch-size", "4"]
    arguments += ["--precision", "float32", "--checkpoint", str(tmp_path / "gan.safetensors")]
    arguments += ["--storage", str(tmp_path / "s.sqlite3"), "--out", str(tmp_path / "out" / "front.jsonl")]
    for extra in ([], ["--final-test"]):
        monkeypatch.setattr(sys, "argv", ["search", *arguments, *extra])
        module.main()
    rows = [json.loads(line) for line in (tmp_path / "out" / "front.jsonl").read_text().splitlines()]
    assert {row["trial"] for row in rows} <= {0, 1} and rows
    settings = SearchConfig(
        checkpoint=str(tmp_path / "gan.safetensors"),
        trials=2,
        finetune_steps=2,
        samples=40,
        batch_size=4,
        precision="float32",
    )
    study = open_study(settings, tmp_path / "s.sqlite3", gan, data)
    for row in rows:
        made = build_trial(settings, gan, data, study.trials[row["trial"]].params)
        for prefix, split, seed in (("", data.validation, 0), ("test_", data.test, 1)):
            report = metrics.evaluate(made.generator_ema, split, samples=40, seed=seed, metrics=("fid",))
            assert row[f"{prefix}digit_fid"] == report.digit_fid
            assert row[f"{prefix}digit_fid_floor"] == report.digit_fid_floor
            assert (row[f"{prefix}samples"], row[f"{prefix}extractor"]) == (40, report.extractor)
        assert study.trials[row["trial"]].user_attrs["provenance"].items() <= row.items()
