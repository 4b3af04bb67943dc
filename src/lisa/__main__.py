"""``python -m lisa``: the command line, for launchers that start modules (``accelerate launch -m lisa train ...``)."""

from lisa.cli import main

if __name__ == "__main__":
    main()
