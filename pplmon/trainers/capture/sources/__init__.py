"""The sources of logits, one file each."""
