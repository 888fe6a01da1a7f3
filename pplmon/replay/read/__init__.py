"""Read a finished run, one file per format."""
