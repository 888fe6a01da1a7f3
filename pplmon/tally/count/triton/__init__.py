"""Count a batch on a GPU in three or four launches, by Triton programs."""
