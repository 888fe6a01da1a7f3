"""Check that the measured number is the right one."""
