"""Runs benchmarks, prints their table and keeps it in ``benchmarks/latest.json``.

python -m benchmarks                       all of them, except those that run only on request
python -m benchmarks --only masked_step    one of them; the others' rows stay
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


def main(argv: list[str] | None = None, path: Path = record.LATEST) -> int:
    """Runs the command line; the exit code is 1 if a benchmark could not be run, whatever the others say."""
    found = discover()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(found), metavar="NAME", help=f"some of: {', '.join(found)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that they work; nothing is kept"
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and how long it takes")
    options = parser.parse_args(argv)
    if options.list:
        for name, module in found.items():
            request = ", on request" if getattr(module, "ON_REQUEST", False) else ""
            print(f"{name:<20} {module.MINUTES:>3} min{request}  {module.__doc__.splitlines()[0]}")
        return 0
    os.environ["GANPRUNE_PROGRESS"] = "0"
    names = options.only or [
        name for name, module in found.items() if not getattr(module, "ON_REQUEST", False)
    ]
    here, failed, shown = record.machine(), [], []
    for name in names:
        begin = time.perf_counter()
        print(f"{name}: about {found[name].MINUTES} min", file=sys.stderr)
        try:
            rows = [row.as_dict(name) for row in found[name].measure(options.quick)]
        except Exception:  # one that fails must not lose the others
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"{name}: done in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
        shown += rows
        if not options.quick:
            record.write(record.merge(record.read(path), name, rows, here), path)
    print(record.table(shown))
    for name in failed:
        print(f"error: {name} could not be run; see above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
