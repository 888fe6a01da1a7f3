"""``pplmon demo``: train a small model for a minute or two, corrupt one sequence on purpose, and see it found."""
