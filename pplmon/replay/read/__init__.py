"""Read a run that is over, one file per format."""
