"""The parts of ``benchmarks.gpu``, one idea a file: each runs in a process of its own, on a GPU, or tiny on a CPU for a dry run."""
