"""The rules that come with pplmon, one file each. No torch."""
