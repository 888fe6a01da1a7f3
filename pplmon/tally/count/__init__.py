"""Count one batch: its tokens become integers, by array operations or by Triton kernels."""
