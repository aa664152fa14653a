"""The command line, ``ganprune`` or ``python -m ganprune``; this entrance is quiet when it is interrupted early."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as of typing, which takes some time to import
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit code: 0 done, 1 it could not be done, 2 an argument is wrong, 3 the training diverged, 130 interrupted.
    """
    try:
        from ganprune.cli.ledger import quick_answer

        answer = quick_answer(sys.argv[1:] if argv is None else argv)
        if answer is not None:
            sys.stdout.write(answer)
            return 0
        from ganprune.cli.dispatch import run_command  # imports PyTorch, which takes a second

        return run_command(argv)
    except KeyboardInterrupt:
        sys.stderr.write("ganprune: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
