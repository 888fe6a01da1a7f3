"""Check that logits and loss are those of the model, so that the measured number is the right one."""
