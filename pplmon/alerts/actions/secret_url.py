"""A URL that contains a secret, and cannot be shown or saved by accident."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit


class Undelivered(Exception):
    """A message did not arrive. Its text is shown to the user, so it never holds an address."""

    def __init__(self, text: str, retry: bool = True, after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry = retry
        self.after_s = after_s  # seconds to wait before the next try, where the host said so


class Address:
    """A URL, or "$NAME": the environment variable that holds it.

    It is shown as ``scheme://host/…`` (``scheme://…`` where even the host may be a secret), and pickled without the URL:
    in another process only "$NAME" finds it again.
    """

    __slots__ = ("_shown", "_url", "_variable")

    def __init__(self, url: str, show_host: bool = True) -> None:
        if not isinstance(url, str):
            raise TypeError(f'a URL is a string, or "$NAME" for an environment variable; got a {type(url).__name__}')
        self._variable = url[1:] if url.startswith("$") else None
        self._url: str | None = url if self._variable is None else os.environ.get(self._variable, "")
        if not self._url:
            raise ValueError(f"there is no URL: {'it is empty' if self._variable is None else f'{url} is not set'}")
        self._shown = _shown(self._url, show_host)

    def reveal(self) -> str:
        """Return the URL.

        Raises:
            Undelivered: this was pickled, and a pickle does not contain the URL.
        """
        if self._url is None and self._variable is not None:
            self._url = os.environ.get(self._variable)
        if self._url is None:
            raise Undelivered(
                "its URL stayed behind in the process that made it, so that it is not written anywhere; "
                'give it as "$NAME" and set the environment variable NAME',
                retry=False,
            )
        return self._url

    def __repr__(self) -> str:
        return repr(self._shown)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._variable, self._shown)


def _unpickled(variable: str | None, shown: str) -> Address:
    address = Address.__new__(Address)
    address._variable, address._shown, address._url = variable, shown, None
    return address


def _shown(url: str, show_host: bool) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme.replace("+", "").replace("-", "").isalnum():
        return "…"
    try:
        host = urlsplit(url).hostname if show_host else None
    except ValueError:  # its text has the URL in it
        host = None
    return f"{scheme}://{host}/…" if host else f"{scheme}://…"
