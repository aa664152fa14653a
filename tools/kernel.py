"""Assemble the WebAssembly that the book draws with: from its text in ``book/kernel`` to the bytes a browser runs.

The assembler is the npm package that ``tools/kernel.json`` pins; it works at build time, and is not served.
"""

import subprocess
from pathlib import Path

import javascript

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "book" / "kernel" / "sparse.wat"
SCRIPT = """
const [assembler, source, target] = process.argv.slice(1);
const { readFileSync, writeFileSync } = require("fs");
require(assembler)().then((wabt) => {
  const text = wabt.parseWat(source, readFileSync(source, "utf8"), { simd: true });
  text.resolveNames();
  text.validate();
  writeFileSync(target, text.toBinary({}).buffer);
}).catch((error) => { console.error(error.message); process.exitCode = 1; });
"""


class AssemblyError(RuntimeError):
    """The text is no WebAssembly."""


def assemble(target: Path, source: Path = SOURCE) -> Path:
    """Write the bytes of a text.

    Args:
        target: file to write; its folder is made.
        source: the text.

    Raises:
        AssemblyError: the text has a mistake; the message names the line.
        javascript.FetchError: the assembler could not be fetched.
    """
    folder = javascript.install(javascript.KERNEL_TARGET, javascript.KERNEL_PINS)
    target.parent.mkdir(parents=True, exist_ok=True)
    arguments = [folder / "wabt" / "index.js", source.resolve(), target.resolve()]
    command = [javascript.program("node"), "-e", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AssemblyError(done.stderr.strip())
    return target
