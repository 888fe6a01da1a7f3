"""Fixed runs, and what they gave; see ``tests.golden_runs``."""
