"""The command line. Nothing heavy is imported until a verb runs."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``lisa``: errors of the user end with one message and exit code 2, never a traceback."""
    from lisa.cli.app import app
    from lisa.common.errors import LisaError

    try:
        app(prog_name="lisa")
    except LisaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
