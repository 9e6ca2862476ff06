"""Whether keys are needed, and that there is one: nobody opens the service to a network by mistake."""

from __future__ import annotations

import ipaddress
import ssl
import time

from forcegate.errors import SetupError
from frontend.settings import PREFIX, Settings

CREATE = "Create one with `forcegate keys create NAME --scope operate`, with the same settings, and start again."


def keys_needed(settings: Settings) -> bool:
    """Whether requests need a key: always beyond loopback, and on loopback where the setting says so."""
    return settings.keys == "on" or (settings.keys == "auto" and not on_loopback(settings.host))


def on_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on ``host``; of names localhost alone is taken for such."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(settings: Settings) -> None:
    """That a service that others can reach asks for keys, and that there is one.

    Raises:
        SetupError: it does not, or there is none; the hint says how to make one. Or the files of its certificate cannot be used.
    """
    _check_certificate(settings)
    if not keys_needed(settings):
        if on_loopback(settings.host):
            return
        raise SetupError(
            f"The gateway would listen on {settings.host or 'every address'} without keys: anybody who reaches it could use it.",
            f"Leave {PREFIX}KEYS out, or set {PREFIX}HOST to 127.0.0.1. {CREATE}",
        )
    from frontend.security.keys import KeyStore

    store = KeyStore(settings)
    try:
        now = time.time()
        if not any(key.state(now) == "valid" for key in store.all()):
            raise SetupError("The gateway asks for API keys, and there is no valid one.", CREATE)
    finally:
        store.close()


def _check_certificate(settings: Settings) -> None:
    if not settings.tls_certificate and not settings.tls_key:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)
    except OSError as error:
        raise SetupError(
            f"The gateway's certificate cannot be used: {error.strerror or error}.",
            f"{PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY name PEM files that belong together, and that this user can read.",
        ) from None
