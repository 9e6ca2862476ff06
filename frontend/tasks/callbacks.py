"""Calls to addresses that users gave, when their tasks change: signed, tried again, and never a way into the local network."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import sqlalchemy as sa

from forcegate.errors import InvalidRequest
from frontend.tasks.tables import CALLBACKS, TASKS

log = logging.getLogger(__name__)

SIGNATURE = "X-Forcegate-Signature"
TIMEOUT_SECONDS = 10.0
MAX_TRIES = 12
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 3600.0
"""Pauses quadruple from the first to the longest, in s: twelve tries take some seven hours."""
CLAIM_SECONDS = 60.0
"""A try that was begun and of which nothing more is heard is made again by another worker after so long."""
AT_ONCE = 20


class Refused(Exception):
    """The address may not be called, now or ever."""


def check(url: str, private: bool) -> None:
    """Refuses what can be told from the address alone; what its name stands for is looked at before each call.

    Raises:
        InvalidRequest: it is no http or https address, or leads into the local network where that is not allowed.
    """
    hint = "Give an http or https address that can be reached from outside, such as https://example.org/forcegate."
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidRequest("The callback's address cannot be read.", hint) from None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or len(url) > 2000:
        raise InvalidRequest("The callback's address is none that can be called.", hint)
    if private:
        return
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        forbidden = host.rstrip(".").lower() == "localhost"
    else:
        forbidden = not is_public(literal)
    if forbidden:
        raise InvalidRequest("The callback's address is in the local network.", hint)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is one of the internet. What is wrapped in IPv6 counts as what is inside."""
    if isinstance(address, ipaddress.IPv6Address):
        if (inner := address.ipv4_mapped or address.sixtofour) is not None:
            return is_public(inner)
        if address in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast


def signature(secret: str, body: bytes) -> str:
    """What the header ``X-Forcegate-Signature`` holds: HMAC-SHA256 over the body, in hexadecimal."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def pause(tries: int) -> float:
    """Seconds until the next try after ``tries`` that failed."""
    return float(min(FIRST_PAUSE * 4 ** (tries - 1), LONGEST_PAUSE))


class Deliveries:
    """Makes the calls that are due, each by one worker; a call may arrive twice where a worker ended between call and note.

    Args:
        private: whether addresses that are not public may be called.
        clock: seconds since the epoch.
    """

    def __init__(self, engine: sa.Engine, private: bool, clock: Callable[[], float]) -> None:
        self._engine, self._private, self._clock = engine, private, clock

    def due(self) -> list[sa.RowMapping]:
        """Calls that this worker has to make now; no other worker makes them within the next minute."""
        moment = self._clock()
        query = sa.select(CALLBACKS).where(CALLBACKS.c.due <= moment).order_by(CALLBACKS.c.due).limit(AT_ONCE)
        with self._engine.connect() as connection:
            found = connection.execute(query).mappings().all()
        if not found:
            return []
        claimed = []
        with self._engine.begin() as connection:
            for row in found:
                mine = sa.and_(CALLBACKS.c.id == row["id"], CALLBACKS.c.due == row["due"])
                values = {"due": moment + CLAIM_SECONDS, "tries": CALLBACKS.c.tries + 1}
                if connection.execute(CALLBACKS.update().where(mine).values(**values)).rowcount:
                    claimed.append(row)
        return claimed

    def deliver(self, row: sa.RowMapping) -> None:
        """Makes one call and notes what came of it."""
        tries = row["tries"] + 1
        with self._engine.connect() as connection:
            task = connection.execute(sa.select(TASKS).where(TASKS.c.id == row["task"])).mappings().one_or_none()
        if task is None:
            return
        due: float | None = None
        try:
            outcome = f"answered {self._send(row, task)}"
        except (httpx.HTTPError, OSError, Refused, ValueError) as error:
            outcome = f"{type(error).__name__}: {error}"[:500]
            due = None if tries >= MAX_TRIES else self._clock() + pause(tries)
            log.warning("callback failed", extra={"task": row["task"], "tries": tries, "outcome": outcome})
        with self._engine.begin() as connection:
            connection.execute(CALLBACKS.update().where(CALLBACKS.c.id == row["id"]).values(due=due, outcome=outcome))

    def _send(self, row: sa.RowMapping, task: sa.RowMapping) -> int:
        content: dict[str, Any] = {
            "task_id": row["task"],
            "status": row["event"],
            "kind": task["kind"],
            "models": json.loads(task["models"]),
            "time": row["time"],
            "delivery": row["id"],
            "error": None if task["error"] is None or row["event"] != task["status"] else json.loads(task["error"]),
        }
        body = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "Forcegate"}
        if task["callback_secret"]:
            headers[SIGNATURE] = signature(task["callback_secret"], body)
        return post(task["callback_url"], body, headers, self._private)


def post(url: str, body: bytes, headers: dict[str, str], private: bool) -> int:
    """Sends ``body`` to ``url`` and returns the status of the answer, one below 300.

    The name is resolved once, every address that it has is checked, and the connection goes to one of those: a name that is
    resolved anew for the connection could stand for something else by then. Redirections are not followed, proxies not used.

    Raises:
        Refused: the name stands for an address that is not public.
        HTTPError, OSError: nobody answered, or not with success.
    """
    original = httpx.URL(url)
    port = original.port or (443 if original.scheme == "https" else 80)
    found = socket.getaddrinfo(original.host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not private and not all(is_public(address) for address in addresses):
        raise Refused(f"{original.host} is in the local network")
    request_headers = headers | {"Host": original.netloc.decode("ascii")}
    with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False, follow_redirects=False) as client:
        # TLS checks the certificate against the name that was asked for, not against the number.
        request = client.build_request(
            "POST",
            original.copy_with(host=str(addresses[0])),
            content=body,
            headers=request_headers,
            extensions={"sni_hostname": original.host},
        )
        with_body = client.send(request, stream=True)  # whatever it answers with is not read
        with_body.close()
    if with_body.status_code >= 300:
        raise httpx.HTTPError(f"answered {with_body.status_code}")
    return with_body.status_code
