"""``Notify``: send an alert through apprise, to Slack, mail, Telegram, ntfy or one of some hundred other services."""

from __future__ import annotations

import logging
import threading
from typing import Any

from pplmon.alerts.actions.chat_messages import body
from pplmon.alerts.actions.secret_url import Address, Undelivered
from pplmon.alerts.actions.sender import DRAIN_S, QUEUE, TRIES, Message, Remote
from pplmon.alerts.text import title

KINDS = {"info": "info", "warning": "warning", "critical": "failure"}  # as apprise calls them
TALKATIVE = ("apprise", "urllib3", "requests", "requests_oauthlib", "oauthlib")  # their logs have whole URLs in them


class Notify(Remote):
    """Send an alert by apprise: ``Notify("slack://…")``, ``Notify("mailto://…")``. It needs ``pip install pplmon[apprise]``.

    Everything else is as in ``Webhook``, the secrecy of the URL, too: here it is shown as ``scheme://…``.

    Raises:
        ValueError: apprise knows no such URL. ImportError: apprise is not installed.
    """

    def __init__(
        self,
        url: str,
        every_s: float = 300.0,
        tries: int = TRIES,
        queue: int = QUEUE,
        rows: int = 3,
        drain_s: float = DRAIN_S,
    ) -> None:
        super().__init__(Address(url, show_host=False), every_s, tries, queue, drain_s)
        self._rows = rows
        if len(_services(self._address)) != 1:
            raise ValueError(
                f"apprise knows no service for the URL {self._address!r} (the rest is not shown), or more than one: give "
                "each a Notify of its own. How each service's URL is written: https://github.com/caronc/apprise"
            )

    def _send(self, message: Message) -> None:
        services = _services(self._address)
        with _SILENCE:
            arrived = services.notify(
                body=body(message, self._rows),
                title=f"pplmon {title(message.alert)}",
                notify_type=KINDS[message.alert.severity],
                body_format="text",
            )
        if not arrived:
            raise Undelivered("the service did not take it")


def _services(address: Address) -> Any:
    """Return apprise with this one address. Made anew for each message, because it holds the secret openly."""
    try:
        import apprise
    except ImportError:
        raise ImportError("Notify needs apprise: pip install 'pplmon[apprise]'") from None
    services, url = apprise.Apprise(), address.reveal()
    with _SILENCE:
        try:
            services.add(url)
        except Exception:  # its text may have the URL in it
            return []
    return services


class _Silence(logging.Filter):
    """Drop log records, of all threads, while a message is sent: apprise logs addresses, and from threads of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._depth = 0

    def __enter__(self) -> None:
        known = list(logging.root.manager.loggerDict)
        with self._lock:
            self._depth += 1
            for name in {*TALKATIVE, *(name for name in known if name.split(".")[0] in TALKATIVE)}:
                logging.getLogger(name).addFilter(self)  # once, however often it is added

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._depth -= 1

    def filter(self, record: logging.LogRecord) -> bool:
        # urllib3 and the like serve others, too: what they warn of is heard, what they chatter is not.
        kept = record.levelno >= logging.WARNING and not record.name.startswith("apprise")
        return kept or not self._depth


_SILENCE = _Silence()
