"""Build the book if need be, and serve it to this machine's browsers.

    python tools/serve.py                          at http://localhost:8000
    python tools/serve.py --port 9000              at another port; 0 takes any that is free
    python tools/serve.py --bind 0.0.0.0           to other machines too, for example out of a container

The port is taken before anything is built, so that a port in use is known at once.
"""

import argparse
import errno
import os
import socket
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import book

PORTS_TO_TRY = 100


class ServeError(RuntimeError):
    """The book cannot be served where it was asked for; the message says why, and where it could be."""


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each of them."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A server that takes a port for itself alone."""

    allow_reuse_address = os.name == "posix"  # on Windows this would let two servers share a port


def port_number(text: str) -> int:
    """Return a port given as text, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text!r}")
    return int(text)


def free_port(address: str, after: int) -> int | None:
    """Return the next port above ``after`` that could be taken now, or None."""
    for port in range(after + 1, min(after + PORTS_TO_TRY, 65535) + 1):
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    return None


def open_server(address: str, port: int, folder: Path) -> Server:
    """Take a port for the files of a folder.

    Raises:
        ServeError: the port is in use or not allowed, or the address is not this machine's.
    """
    try:
        return Server((address, port), partial(QuietHandler, directory=str(folder)))
    except OSError as problem:
        if problem.errno != errno.EADDRINUSE:
            raise ServeError(f"port {port} of {address} cannot be opened: {problem.strerror}") from problem
        other = free_port(address, port)
        remedy = f"; {other} is free: make serve PORT={other}" if other else ""
        raise ServeError(f"port {port} is in use by another program{remedy}") from problem


def serve(address: str, port: int, output: Path) -> int:
    """Take the port, build the book below a folder, say where it is and serve it; return the exit code."""
    with open_server(address, port, book.Places.below(output).html) as server:
        code = book.build(output)
        if code:
            return code
        print(f"open http://localhost:{server.server_port}  (Ctrl-C stops)", flush=True)
        server.serve_forever()
    return 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=port_number, default=8000, help="port to serve at (default: 8000)")
    parser.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="address to listen at")
    parser.add_argument("--output", type=Path, default=book.ROOT / "_build", help="folder of the build")
    options = parser.parse_args()
    output = options.output.resolve()
    os.chdir(book.ROOT)
    try:
        return serve(options.bind, options.port, output)
    except ServeError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
