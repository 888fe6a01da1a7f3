"""The version of pplmon that is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("pplmon")
except PackageNotFoundError:  # running from a checkout that is not installed
    VERSION = "0"
