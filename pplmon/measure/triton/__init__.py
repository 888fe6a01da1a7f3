"""Measure logits on a GPU in one launch, by a Triton program."""
