"""``Webhook``: POST an alert to a URL."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from pplmon.alerts.actions.chat_messages import SHAPES, shape_for
from pplmon.alerts.actions.secret_url import Address, Undelivered
from pplmon.alerts.actions.sender import DRAIN_S, QUEUE, TRIES, Message, Remote

WORTH_A_RETRY = (408, 425, 429)  # of the answers that say that the request is at fault


class Webhook(Remote):
    """POST an alert as JSON to ``url``: in Slack's or Discord's own shape where the host is theirs.

    A worker thread does it, so no step waits for the host: it tries ``tries`` times, waiting longer each time, while at
    most ``queue`` alerts wait their turn. Further alerts are dropped and counted (``counts``). A host that fails is one
    warning. At the end of the run it waits at most ``drain_s`` seconds for alerts that are being sent.

    The URL is a secret: it is shown as ``scheme://host/…`` and never written anywhere, so that a pickled Webhook has lost
    it, unless it was given as "$NAME", an environment variable. Redirects are not followed.

    Args:
        url: http(s)://…, or "$NAME".
        shape: "json", "slack" or "discord"; ``None`` goes by the host.
        every_s: seconds between two messages of one rule about one number; those between are counted in the next.
        timeout_s: seconds that one try may wait for the host to connect, and to answer.
        rows: worst tokens and worst sequences in a message; 0 sends no evidence, and so no decoded text.

    Raises:
        ValueError: no http(s) URL, an unset variable, or a setting out of range.
    """

    def __init__(
        self,
        url: str,
        shape: str | None = None,
        every_s: float = 300.0,
        timeout_s: float = 10.0,
        tries: int = TRIES,
        queue: int = QUEUE,
        rows: int = 3,
        drain_s: float = DRAIN_S,
    ) -> None:
        super().__init__(Address(url), every_s, tries, queue, drain_s)
        parts = _split(self._address)
        if shape is not None and shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
        self._shape = shape or shape_for(parts.hostname or "")
        self._timeout_s, self._rows = timeout_s, rows

    def _send(self, message: Message) -> None:
        content = SHAPES[self._shape](message, self._rows)
        request = _request(_split(self._address), json.dumps(content, allow_nan=False).encode())
        try:
            with _OPENER.open(request, timeout=self._timeout_s) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            error.close()
            retry = error.code in WORTH_A_RETRY or error.code >= 500
            raise Undelivered(f"it answered {error.code}", retry, _seconds(error.headers.get("Retry-After"))) from None
        except (OSError, http.client.HTTPException) as error:
            raise Undelivered(_reason(error)) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: an alert goes to the host that the user named and to no other."""

    def redirect_request(self, *args: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _split(address: Address) -> SplitResult:
    url = address.reveal()
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # its text has the URL in it
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(
            f"Webhook takes an http:// or https:// URL without spaces, got {address!r} (the rest is not shown)"
        )
    return parts


def _request(parts: SplitResult, content: bytes) -> urllib.request.Request:
    # Discord turns away what calls itself Python-urllib.
    headers = {"Content-Type": "application/json", "User-Agent": "pplmon"}
    user, at, host = parts.netloc.rpartition("@")
    if at:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    url = parts._replace(netloc=host, fragment="").geturl()
    return urllib.request.Request(url, content, headers, method="POST")  # noqa: S310 - http(s) only, checked above


def _reason(error: Exception) -> str:
    """Return the reason of a failure without the URL, which an exception's own text may contain."""
    cause = getattr(error, "reason", None)
    cause = cause if isinstance(cause, Exception) else error
    text = getattr(cause, "strerror", None)
    return f"{type(cause).__name__}: {text}" if isinstance(text, str) else type(cause).__name__


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdecimal() else None
