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
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        first = ". ".join(str(error).split(". ")[:2])
        print(
            f"error: the device's memory does not suffice ({first}). What saves memory: train.mixed_precision=bf16, "
            "side.gradient_checkpointing=true, a smaller train.batch_size with more train.accumulation, smaller or "
            "shorter data; of pictures, --batch 1. docs/memory.md has more. A training goes on from its last "
            "checkpoint with --resume.",
            file=sys.stderr,
        )
        sys.exit(LisaError.exit_code)


def _out_of_memory(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
