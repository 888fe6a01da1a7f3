"""``python -m pplmon`` is the command ``pplmon``."""

from pplmon.cli import main

raise SystemExit(main())
