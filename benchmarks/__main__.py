"""Runs benchmarks, prints their table and keeps it in ``_build/bench/latest.json``.

python -m benchmarks                       all of them, except those that run only on request
python -m benchmarks --only masked_step    one of them; the others' rows stay
python -m benchmarks --record              keep the figures in ``benchmarks/latest.json``, which the book shows
python -m benchmarks --list                what there is
python -m benchmarks --quick               see that they work, at tiny sizes; nothing is kept
"""

import argparse
import importlib
import os
import pkgutil
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType

import benchmarks
from benchmarks import record


def discover() -> dict[str, ModuleType]:
    """The benchmarks of this folder by name, the shortest first."""
    found = {}
    for info in pkgutil.iter_modules(benchmarks.__path__):
        if info.name != "__main__":
            module = importlib.import_module(f"benchmarks.{info.name}")
            if hasattr(module, "measure"):
                found[info.name] = module
    return dict(sorted(found.items(), key=lambda item: (item[1].MINUTES, item[0])))


def parse(argv: list[str] | None, found: dict[str, ModuleType]) -> argparse.Namespace:
    """The options of a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(found), metavar="NAME", help=f"some of: {', '.join(found)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that they work; nothing is kept"
    )
    parser.add_argument(
        "--record", action="store_true", help="keep the figures where the book shows them, in the repository"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and how long it takes")
    options = parser.parse_args(argv)
    if options.quick and options.record:
        parser.error(
            "--quick measures at tiny sizes, which cannot be recorded: leave out --quick or --record"
        )
    return options


def run(names: list[str], found: dict[str, ModuleType], path: Path | None) -> int:
    """Runs benchmarks, keeps their rows in a file (tiny sizes without one), and returns how many failed."""
    here, failed, shown = record.machine(), [], []
    for name in names:
        begin = time.perf_counter()
        print(f"{name}: about {found[name].MINUTES} min", file=sys.stderr)
        try:
            rows = [row.as_dict(name) for row in found[name].measure(path is None)]
        except Exception:  # one that fails must not lose the others
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"{name}: done in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        shown += rows
        if path:
            record.write(record.merge(record.read(path), name, rows, here), path)
    print(record.table(shown))
    if path and shown:
        print(f"kept in {os.path.relpath(path)}")
    for name in failed:
        print(f"error: {name} could not be run; see above", file=sys.stderr)
    return len(failed)


def main(argv: list[str] | None = None, path: Path | None = None) -> int:
    """Runs the command line; the exit code is 1 if a benchmark could not be run, whatever the others say.

    The figures are kept in ``path``; without it where ``--record``, or its absence, says.
    """
    found = discover()
    options = parse(argv, found)
    if options.list:
        for name, module in found.items():
            request = ", on request" if getattr(module, "ON_REQUEST", False) else ""
            print(f"{name:<20} {module.MINUTES:>3} min{request}  {module.__doc__.splitlines()[0]}")
        return 0
    os.environ["GANPRUNE_PROGRESS"] = "0"
    names = options.only or [
        name for name, module in found.items() if not getattr(module, "ON_REQUEST", False)
    ]
    if options.quick:
        print("Tiny sizes, to see that everything works: nothing is kept.", file=sys.stderr)
        return 1 if run(names, found, None) else 0
    path = path or (record.LATEST if options.record else record.SCRATCH)
    minutes = sum(found[name].MINUTES for name in names)
    print(f"About {minutes} min on two cores; the figures go to {os.path.relpath(path)}.", file=sys.stderr)
    return 1 if run(names, found, path) else 0


if __name__ == "__main__":
    sys.exit(main())
