"""``ganprune experiment``: what it lists, plans, runs and shows, and what it refuses in one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_data import small_mnist
from tools.fake_experiments import Coin

from ganprune.__main__ import main
from ganprune.cli import experiment, ledger
from ganprune.experiments import images, runner
from ganprune.experiments.arms import arms_of
from ganprune.experiments.claims import claims
from ganprune.experiments.studies import STUDIES, study
from ganprune.records import config_hash, read
from ganprune.records.store import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ["--profile", "smoke"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Return an empty folder to be in, with a cache of its own and little data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANPRUNE_CACHE", str(tmp_path / "cache"))
    found = small_mnist(128)
    monkeypatch.setattr(images, "course_data", lambda: found)
    return tmp_path


def said(capsys, *arguments: str) -> tuple[str, str]:
    """Run the command, which must succeed; return standard output and standard error."""
    capsys.readouterr()
    code = main(["experiment", *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def test_list_has_a_line_for_each_study(capsys) -> None:
    out, _ = said(capsys, "list")
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(STUDIES)
    assert all(study(name).question in out for name in STUDIES)


def test_the_table_of_the_shipped_records_is_known_and_right(capsys, monkeypatch) -> None:
    """If this fails after a change of records, claims or statistics: .venv/bin/python tools/ledger.py"""
    assert ledger.known_verdicts() is not None
    quick = [said(capsys, "table", *options)[0] for options in ([], ["--json"])]
    monkeypatch.setattr(ledger, "FILE", Path("nowhere.json"))
    monkeypatch.setattr(experiment, "known_verdicts", ledger.known_verdicts)
    assert [said(capsys, "table", *options)[0] for options in ([], ["--json"])] == quick


def test_the_known_table_needs_no_pytorch() -> None:
    code = "import sys; from ganprune.__main__ import main; main(['experiment', 'table'])"
    code += "; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("claim ")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"of": "another", "verdicts": []}', '{"verdicts": []}'],
    ids=["empty", "list", "old", "half"],
)
def test_a_table_of_other_records_is_not_taken_for_known(text, monkeypatch, place) -> None:
    (place / "ledger.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(ledger, "FILE", place / "ledger.json")
    assert ledger.known_verdicts() is None and ledger.quick_answer(["experiment", "table"]) is None


def test_a_changed_record_changes_the_digest(monkeypatch, place) -> None:
    for folder in ("assets/records", "experiments", "records"):
        shutil.copytree(ledger.PACKAGE / folder, place / "copy" / folder)
    whole = ledger.digest()
    monkeypatch.setattr(ledger, "PACKAGE", place / "copy")
    assert ledger.digest() == whole
    with (place / "copy/assets/records/ring_games.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    assert ledger.digest() != whole


def test_plan_says_what_is_missing_and_costs_and_runs_nothing(capsys, place) -> None:
    out, _ = said(capsys, "plan", "magnitude", "--seeds", "0-1")
    arms = study("magnitude").arms
    lines = out.splitlines()
    assert len(lines) == 2 * (len(arms) + 1) + 1  # and the dense pair, and the sum
    steps = 2 * (sum(arm.steps for arm in arms) + 16_000)
    assert lines[-1].startswith(f"{len(lines) - 1} units, {steps:,} steps, about ")
    assert lines[-1].endswith(" core-hours")
    assert list(place.iterdir()) == []
    value = json.loads(said(capsys, "plan", "magnitude", "--seeds", "0-1", "--json")[0])
    assert (value["units"], value["steps"], len(value["arms"])) == (len(lines) - 1, steps, len(lines) - 1)
    assert value["core_hours"] > 1
    parts = [json.loads(said(capsys, "plan", "all", "--shard", f"{i}/3", "--json")[0]) for i in (1, 2, 3)]
    whole = json.loads(said(capsys, "plan", "all", "--json")[0])
    assert sorted(arm for part in parts for arm in part["arms"]) == sorted(whole["arms"])
    assert sum(part["steps"] for part in parts) == whole["steps"]


def test_a_study_is_run_shown_and_compared(capsys, place) -> None:
    arms = {config_hash(arm) for arm in study("measures", "smoke").arms}
    out, err = said(capsys, "run", "measures", *SMOKE, "--seeds", "0", "--json")
    assert json.loads(out)["added"] == len(arms) and "core-hours; rows go to records" in err
    rows = read(place / "records" / "spoilt_images.jsonl")
    assert {(row["key"], row["seed"]) for row in rows} == {(key, 0) for key in arms}
    assert {row["profile"] for row in rows} == {"smoke"}
    before = (place / "records" / "spoilt_images.jsonl").read_bytes()
    out, _ = said(capsys, "run", "measures", *SMOKE, "--seeds", "0-0")
    assert out == "0 units added to records\n"
    assert (place / "records" / "spoilt_images.jsonl").read_bytes() == before

    shown = json.loads(said(capsys, "status", *SMOKE, "--store", "records", "--json")[0])
    seeds = {row["study"]: (row["seeds"], row["complete"]) for row in shown}
    assert seeds.pop("measures") == (1, 0) and set(seeds.values()) == {(0, 0)}

    table = json.loads(said(capsys, "table", *SMOKE, "--store", "records", "--json")[0])
    found = {row["claim"]: row for row in table}
    assert found["1a"]["n"] == 1 and found["1a"]["verdict"] == "not decided"
    assert found["1a"]["effect"] > 0 and found["1a"]["low"] is None

    out, _ = said(capsys, "compare", "measures", *SMOKE)
    assert out.splitlines()[0].split() == ["arm", "course", "own"]
    assert all("–" in line and "(n = 1)" in line for line in out.splitlines()[1:])


def test_the_table_is_a_list_of_claims_with_their_numbers(capsys) -> None:
    table = json.loads(said(capsys, "table", "--json")[0])
    assert [row["claim"] for row in table] == [claim.claim for claim in claims(arms_of("laptop"))]
    wanted = {"claim", "n", "verdict", "effect", "low", "high", "detectable"}
    for row in table:
        assert wanted <= row.keys() and isinstance(row["n"], int)
        assert row["verdict"] in ("supported", "not supported", "not decided")
        assert all(
            isinstance(row[key], (float, type(None))) for key in ("effect", "low", "high", "detectable")
        )
    out, _ = said(capsys, "table")
    assert len(out.splitlines()) == len(table) + 1 and max(map(len, out.splitlines())) < 250


def test_units_that_another_run_is_at_are_said_to_be_left(capsys, monkeypatch) -> None:
    monkeypatch.setattr(runner, "work", lambda *_: False)
    out, _ = said(capsys, "run", "latency", *SMOKE, "--seeds", "0")
    assert out == "0 units added to records, 1 left to another run\n"


def test_a_unit_that_fails_gives_one_sentence_and_exit_code_1(capsys, monkeypatch, place) -> None:
    (place / "journal").mkdir()
    coin = Coin(str(place / "journal"), fails=(0,))
    monkeypatch.setattr(experiment, "units", lambda *_: [runner.Unit(coin, 0)])
    assert main(["experiment", "run", "latency", *SMOKE]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "ganprune: error: 1 of 1 units failed; the first: coin, seed 0: ValueError: the coin of"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run", "the following arguments are required: NAME"),
        ("", "required: ACTION"),
        ("repeat magnitude", "argument ACTION: invalid choice: 'repeat'"),
        ("run magnitud", "argument NAME: must be all or some of measures, dense, "),
        ("compare magnitud --store .", "argument NAME: must be all or some of"),
        *[
            (f"plan dense --seeds={seeds}", "argument --seeds: must be seeds such as 0-4 or 0,2")
            for seeds in ("", "a", "-1", "4-2", "0-", "1,,2", "0-99999999999", "0.5")
        ],
        *[
            (f"run dense --shard={part}", "argument --shard: must be I/N with I from 1 to N")
            for part in ("0/2", "3/2", "1", "1/0", "-1/2", "a/b")
        ],
        ("run dense --jobs 0", "argument --jobs: must be an integer of at least 1"),
        ("run dense --jobs 9999", "argument --jobs: must be at most"),
        *[
            (f"run dense --backend ray --gpus={share}", "argument --gpus: must be a share such as 0.25")
            for share in ("-1", "nan", "inf", "1.5", "much")
        ],
        ("run dense --gpus 0.5", "argument --gpus: needs --backend ray"),
        ("run dense --address auto", "argument --address: needs --backend ray"),
        ("run dense --backend slurm", "argument --backend: invalid choice"),
        ("run dense --tracker comet", "argument --tracker: invalid choice"),
        ("status --profile desktop", "argument --profile: invalid choice"),
        ("table --store nowhere", "argument --store: must be a folder of records, got 'nowhere'"),
        ("compare dense", "argument --store: must be a folder of records, got 'records'"),
        ("run dense --store file", "argument --store: must be a folder of records, got 'file'"),
    ],
)
def test_bad_arguments_give_one_sentence_and_exit_code_2(
    capsys, monkeypatch, place, arguments, message
) -> None:
    (place / "file").touch()
    monkeypatch.setattr(experiment, "run_units", lambda *_: pytest.fail("it ran"))
    assert main(["experiment", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert err.startswith("ganprune experiment")


def test_the_table_imports_nothing_that_it_does_not_need() -> None:
    """Most of the time that the command takes is that of its imports."""
    heavy = ["torchvision", "torch_fidelity", "torch_pruning", "matplotlib", "sklearn", "ray", "wandb"]
    heavy += [
        "tensorboard",
        "scipy.stats",
        "scipy.optimize",
        "torch._dynamo",
        "torch.utils.flop_counter",
        "sympy",
    ]
    heavy += [f"ganprune.cli.{name}" for name in ("train", "prune", "lottery", "sample", "evaluate", "runs")]
    program = (
        "import sys; from ganprune.__main__ import main; code = main(['experiment', 'table', '--json']); "
        f"sys.stderr.write(' '.join(name for name in {heavy} if name in sys.modules)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr == "" and json.loads(done.stdout)


def test_studies_without_a_generators_distance_are_not_shown_as_missing(capsys, place) -> None:
    shutil.copytree(SHIPPED, place / "records")
    lines = said(capsys, "compare", "critic-and-blur", "latency", "--store", "records")[0].splitlines()[1:]
    assert len(lines) == 2
    assert all(line.count("other measures: see experiment table") == 2 for line in lines)


def test_studies_of_the_ring_are_compared_by_their_distance(capsys, place) -> None:
    (place / "records").mkdir()
    names = ("ring-schedules", "ring-tickets")
    lines = said(capsys, "compare", *names, "--store", "records")[0].splitlines()
    assert len(lines) == 1 + sum(len(study(name).arms) for name in names)
    measured = [line for line in lines[1:] if "(n = " in line]
    assert len(measured) >= 8 + 2 and all("(n = 10)" in line for line in measured)
    assert all("–" in line for line in lines[1:] if line not in measured)


def test_a_search_and_a_comparison_of_one_configuration_keep_their_seeds_apart(capsys, place) -> None:
    (place / "records").mkdir()
    for name, seeds in {"ring-search": 3, "ring-losses": 10}.items():
        lines = said(capsys, "compare", name, "--store", "records")[0].splitlines()[1:]
        assert lines and all(f"(n = {seeds})" in line for line in lines), name
