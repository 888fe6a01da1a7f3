"""``python -m pplmon`` is the command ``pplmon``."""

from pplmon.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
