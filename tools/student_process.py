"""The process that runs a student's code while it is graded: it knows the notebook's cells and no test.

It is started by :mod:`sandbox`, speaks over its standard input and output, and obeys four requests: run a cell, say
what a name is, call a function, hand out a file. Requests are pickled, because they come from the grader; answers are
JSON with plain numbers, texts and tensors, because they come from a process that nobody trusts. A message is eight
bytes of length and its body.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST = 64 * 2**20
"""Bytes in one answer or file; what is larger is refused."""
SHOWN = 4_000
"""Characters of a cell's output that are kept."""


def read_exactly(stream: Any, count: int) -> bytes:
    """Read so many bytes from a stream."""
    data = stream.read(count)
    if len(data) < count:
        raise EOFError("the other end is closed")
    return data


def encode(value: Any, depth: int = 0) -> Any:
    """Turn a value into what JSON can carry; what is no plain value keeps the name of its type only."""
    import numpy as np
    import torch

    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return {"number": repr(value)}
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        return _array(
            plain.reshape(-1).view(torch.uint8).numpy().tobytes(), plain.dtype, plain.shape, "tensor"
        )
    if isinstance(value, (np.ndarray, np.generic)):
        array = torch.from_numpy(np.ascontiguousarray(value))
        return {**encode(array.reshape(value.shape)), "kind": "array"}
    if depth < 6 and isinstance(value, Mapping):
        pairs = [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]
        return {"kind": "dict", "items": pairs}
    if depth < 6 and isinstance(value, (list, tuple, set)):
        return {"kind": type(value).__name__, "items": [encode(item, depth + 1) for item in value]}
    return {"kind": "other", "type": type(value).__name__}


def _array(data: bytes, dtype: Any, shape: Any, kind: str) -> dict[str, Any]:
    if len(data) > LARGEST:
        raise ValueError(f"a tensor of {len(data):,} bytes is too large to be looked at")
    text = base64.b64encode(data).decode("ascii")
    return {"kind": kind, "dtype": str(dtype).removeprefix("torch."), "shape": list(shape), "data": text}


def failure(error: BaseException) -> dict[str, str]:
    """Describe an exception by its type and its words."""
    try:
        words = str(error)
    except Exception:
        words = ""
    return {"name": type(error).__name__, "message": words[:500]}


class Process:
    """A namespace in which cells run, and the requests about it."""

    def __init__(self) -> None:
        # what every notebook imports counts towards the start, not towards a cell's time
        import torch  # noqa: F401
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        import ganprune  # noqa: F401

        settings = Config()
        settings.HistoryManager.enabled = False
        settings.InteractiveShell.colors = "nocolor"
        settings.InteractiveShell.xmode = "Plain"
        self.shell = InteractiveShell.instance(config=settings)

    def run(self, source: str) -> dict[str, Any]:
        """Run a cell and return what it printed, or how it failed."""
        from IPython.utils.capture import capture_output

        with capture_output() as captured:
            result = self.shell.run_cell(source, store_history=False)
        texts = [output.data.get("text/plain", "") for output in captured.outputs]
        shown = "\n".join(filter(None, [captured.stdout, *map(str, texts)]))
        error = result.error_before_exec or result.error_in_exec
        return {"shown": shown[:SHOWN], "error": failure(error) if error else None}

    def look(self, name: str) -> dict[str, Any]:
        """Say whether a name is missing, a function, or a value, and which."""
        if name not in self.shell.user_ns:
            return {"is": "missing"}
        value = self.shell.user_ns[name]
        return {"is": "function"} if callable(value) else {"is": "value", "value": encode(value)}

    def call(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        """Call a function of the notebook; return its result, and what it did to tensors and modules that it got."""
        import torch

        result = encode(self.shell.user_ns[name](*arguments, **options))
        after = []
        for argument in arguments:
            if isinstance(argument, torch.nn.Module):
                after.append(encode(argument.state_dict()))
            else:
                after.append(encode(argument) if isinstance(argument, torch.Tensor) else None)
        return {"result": result, "after": after}

    def file(self, name: str) -> dict[str, Any]:
        """Hand out a regular file of the working folder."""
        path = Path(name)
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
            return {"data": None}
        return {"data": base64.b64encode(path.read_bytes()).decode("ascii")}


def main() -> None:
    """Answer requests until the other end closes."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nowhere, handle)
    process = Process()
    while True:
        try:
            (size,) = struct.unpack(">Q", read_exactly(requests, 8))
            body = read_exactly(requests, size)
        except EOFError:
            return
        try:
            request, *rest = pickle.loads(body)
            answer = getattr(process, request)(*rest)
        except BaseException as error:
            answer = {"error": failure(error)}
        text = json.dumps(answer).encode("utf-8")
        answers.write(struct.pack(">Q", len(text)) + text)
        answers.flush()


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]
    main()
