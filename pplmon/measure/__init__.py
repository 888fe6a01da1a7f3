"""Measure logits and targets: one row of ``TokenStats`` per token, on the device of the logits."""
