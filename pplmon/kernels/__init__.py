"""One file per way to measure logits; each has a ``measure`` with the signature of ``eager.measure``."""
