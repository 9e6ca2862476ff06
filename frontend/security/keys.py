"""API keys: made once, kept as a hash in the database of the tasks, and looked up by the id that they begin with.

They are in that database, and not in a file, because every gateway of every machine reads it: a revocation counts everywhere.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from forcegate.errors import InvalidRequest, NotFound, SetupError
from frontend.settings import Settings
from frontend.tasks import tables

PREFIX: Final = "fgk"
"""Begins every key, so that a scanner for secrets can find one that was committed somewhere."""
_TOKEN = re.compile(rf"{PREFIX}_([0-9a-f]{{16}})_[A-Za-z0-9_\-]{{43}}")
USER = re.compile(r"[A-Za-z0-9._@:\-]{1,100}")
"""What a user may be called."""

_METADATA = sa.MetaData()
KEYS: Final = sa.Table(
    "forcegate_keys",
    _METADATA,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("user", sa.String(100), nullable=False),
    sa.Column("scope", sa.String(16), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double),
    sa.Column("revoked", sa.Double),
)


class Scope(StrEnum):
    """What a key is good for; each scope holds those before it."""

    READ = "read"
    """Models, health, metrics, the scheduler."""
    COMPUTE = "compute"
    """Calculations, structures and tasks of one's own."""
    OPERATE = "operate"
    """Loading and unloading models, and everybody's tasks."""

    def covers(self, needed: Scope) -> bool:
        """Whether a key of this scope may do what needs ``needed``."""
        order = list(Scope)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True)
class Key:
    """One key as it is kept. Times are seconds since the epoch, UTC.

    Attributes:
        id: sixteen hexadecimal digits; no secret.
        digest: sha256 of the whole key, hexadecimal.
        name: what its owner calls it.
        user: whose tasks and structures it makes; several keys may be of one user.
    """

    id: str
    digest: str
    name: str
    user: str
    scope: Scope
    created: float
    expires: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> str:
        """``valid``, ``revoked`` or ``expired``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"

    def is_of(self, token: str) -> bool:
        """Whether ``token`` is this key; it takes as long for every wrong one."""
        return hmac.compare_digest(self.digest, digest(token))


def digest(token: str) -> str:
    """What is kept of a key.

    One round of sha256, without salt: a key is 256 random bits and no password, so nobody can guess it from its hash or look it up
    in a table, and a slow hash would only cost time at every request.
    """
    return hashlib.sha256(token.encode()).hexdigest()


def id_of(token: str) -> str | None:
    """The id in a key, or None where it does not look like one."""
    found = _TOKEN.fullmatch(token)
    return found[1] if found else None


class KeyStore:
    """The keys in the database of ``settings``; calls block.

    Raises:
        SetupError: (from each call) the database cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        address = tables.url(settings)
        if address.startswith("sqlite"):
            settings.state.mkdir(parents=True, exist_ok=True)
        self._engine = tables.connect(address, 1)
        self._prepared = False

    def close(self) -> None:
        """Ends the connections."""
        self._engine.dispose()

    def create(self, name: str, user: str, scope: Scope, seconds: float | None = None) -> tuple[str, Key]:
        """A new key, and what is kept of it; the key itself is never to be seen again.

        Args:
            seconds: after which it expires; None for never.

        Raises:
            InvalidRequest: the name or the user is not one.
        """
        if not USER.fullmatch(user):
            raise InvalidRequest("A user has to be letters, digits and . _ @ : -, at most 100.", "")
        if not (0 < len(name) <= 100 and name.isprintable()):
            raise InvalidRequest("A key's name has to be 1 to 100 printable characters.", "")
        identifier, now = secrets.token_hex(8), time.time()
        token = f"{PREFIX}_{identifier}_{secrets.token_urlsafe(32)}"
        key = Key(identifier, digest(token), name, user, scope, now, None if seconds is None else now + seconds)
        with self._writing() as connection:
            connection.execute(KEYS.insert().values(**vars(key) | {"scope": str(scope)}))
        return token, key

    def all(self) -> list[Key]:
        """Every key there ever was, the oldest first."""
        with self._reading() as connection:
            rows = connection.execute(sa.select(KEYS).order_by(KEYS.c.created, KEYS.c.id)).mappings().all()
        return [_key(row) for row in rows]

    def revoke(self, identifier: str) -> Key:
        """Ends a key; one that is revoked stays as it is.

        Raises:
            NotFound: there is none of this id.
        """
        with self._writing() as connection:
            mine = KEYS.c.id == identifier
            connection.execute(KEYS.update().where(mine, KEYS.c.revoked.is_(None)).values(revoked=time.time()))
            row = connection.execute(sa.select(KEYS).where(mine)).mappings().one_or_none()
        if row is None:
            raise NotFound(f"There is no key {identifier[:40]!r}.", "`forcegate keys list` shows their ids.")
        return _key(row)

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _typed():
            self._prepare()
            with self._engine.connect() as connection:
                yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with _typed():
            self._prepare()
            with tables.writing(self._engine) as connection:
                yield connection

    def _prepare(self) -> None:
        if self._prepared:
            return
        with tables.writing(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7046029254386353132)")
            _METADATA.create_all(connection)
        self._prepared = True


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        cause = " ".join(str(getattr(error, "orig", error)).split())
        raise SetupError(f"The database of keys cannot be used: {cause}", "See FORCEGATE_DATABASE_URL.") from None


def _key(row: Any) -> Key:
    return Key(**dict(row) | {"scope": Scope(row["scope"])})
