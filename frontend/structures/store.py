"""The uploaded structures, in the database of the tasks: every gateway of every machine sees them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlalchemy as sa

from forcegate.errors import BodyTooLarge, InvalidRequest, ServerUnavailable, SetupError, TooManyStructures
from forcegate.structure import Structure
from frontend.entries import no_structure
from frontend.settings import Settings
from frontend.structures.packing import unpack
from frontend.tasks import tables
from frontend.tasks.tables import STRUCTURES, writing

if TYPE_CHECKING:
    from frontend.structures.upload import Upload

log = logging.getLogger(__name__)

ID: Final = re.compile("[0-9a-f]{32}")
CONNECTIONS: Final = 4
"""Database calls of one gateway at once."""
_SHOWN: Final = [column for column in STRUCTURES.c if column.name not in ("content", "preview")]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Kept:
    """An uploaded structure without its atoms. Times are seconds since the epoch, UTC."""

    id: str
    user: str
    name: str
    formula: str
    atoms: int
    uploaded: float


class StructureStore:
    """Structures by owner and id. Calls come from one event loop; the database is called in threads, and opened by the first.

    Every call raises ``ServerUnavailable`` while the database cannot be used, and ``NotFound`` for a structure that does not exist,
    is another user's, or has been kept for as long as one is.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._clock = settings, clock
        self._engine: sa.Engine | None = None
        self._opening = asyncio.Lock()
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="structures")

    async def close(self) -> None:
        """Ends the connections; running calls end first."""
        await asyncio.to_thread(self._threads.shutdown)
        if self._engine is not None:
            self._engine.dispose()

    async def keep(self, user: str, upload: Upload) -> tuple[Kept, bool]:
        """Keeps a structure, and tells whether it is new; one that is there already is kept for longer.

        Raises:
            TooManyStructures: the user has as many as one may have, or too little is left of the bytes that they may take.
        """
        identifier = id_of(user, upload.content)

        def write(engine: sa.Engine) -> tuple[Kept, bool]:
            with writing(engine) as connection:
                if connection.dialect.name == "postgresql":  # one upload of a user after the other; on SQLite all are
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("structures of " + user))))
                now = self._clock()
                connection.execute(STRUCTURES.delete().where(STRUCTURES.c.uploaded < self._oldest()))
                kept = Kept(identifier, user, upload.name, upload.formula, upload.atoms, now)
                fresh = {"name": upload.name, "uploaded": now}
                if connection.execute(STRUCTURES.update().where(STRUCTURES.c.id == identifier).values(**fresh)).rowcount:
                    return kept, False
                preview = json.dumps(upload.preview)
                self._admit(connection, user, len(upload.content) + len(preview))
                connection.execute(STRUCTURES.insert().values(**vars(kept), content=upload.content, preview=preview))
                return kept, True

        return await self._call(write)

    async def find(self, user: str, limit: int, offset: int) -> tuple[int, list[Kept]]:
        """How many the user has, and one page of them, the newest first."""

        def read(engine: sa.Engine) -> tuple[int, list[Kept]]:
            mine = self._of(user)
            newest = sa.select(*_SHOWN).where(*mine).order_by(STRUCTURES.c.uploaded.desc(), STRUCTURES.c.id)
            with engine.connect() as connection:
                total = connection.scalar(sa.select(sa.func.count()).select_from(STRUCTURES).where(*mine)) or 0
                rows = connection.execute(newest.limit(limit).offset(offset)).mappings().all()
            return total, [Kept(**row) for row in rows]

        return await self._call(read)

    async def structure(self, user: str, identifier: str) -> tuple[Kept, Structure]:
        """One structure."""
        row = await self._call(lambda engine: self._row(engine, user, identifier, STRUCTURES.c.content))
        return _kept(row), unpack(row["content"])

    async def preview(self, user: str, identifier: str) -> tuple[Kept, dict[str, Any]]:
        """The preview of one structure."""
        row = await self._call(lambda engine: self._row(engine, user, identifier, STRUCTURES.c.preview))
        return _kept(row), json.loads(row["preview"])

    async def delete(self, user: str, identifier: str) -> None:
        """Removes one structure. Tasks that were made of it have their own copy."""

        def write(engine: sa.Engine) -> bool:
            with writing(engine) as connection:
                return bool(connection.execute(STRUCTURES.delete().where(STRUCTURES.c.id == identifier, *self._of(user))).rowcount)

        if not await self._call(write):
            raise no_structure(identifier)

    async def fetch(self, user: str, identifiers: Sequence[str], most_bytes: int) -> dict[str, Structure]:
        """Those of the structures that the user has, by their ids.

        Raises:
            BodyTooLarge: together, each as often as it is named, they are longer than ``most_bytes``: a short body shall not ask
                for more than a long one could.
        """
        named = Counter(each for each in identifiers if ID.fullmatch(each))

        def read(engine: sa.Engine) -> dict[str, Structure]:
            wanted = [STRUCTURES.c.id.in_(list(named)), *self._of(user)]
            sizes = sa.select(STRUCTURES.c.id, sa.func.length(STRUCTURES.c.content)).where(*wanted)
            with engine.connect() as connection:
                size = sum(length * named[identifier] for identifier, length in connection.execute(sizes))
                if size > most_bytes:
                    raise BodyTooLarge(f"The structures that are named have more than {most_bytes // 2**20} MB together.")
                rows = connection.execute(sa.select(STRUCTURES.c.id, STRUCTURES.c.content).where(*wanted)).all()
            return {identifier: unpack(content) for identifier, content in rows}

        return await self._call(read)

    def _admit(self, connection: sa.Connection, user: str, size: int) -> None:
        """Whether there is room for one more, of ``size`` bytes, among those of a user."""
        # The preview is ASCII: its characters are its bytes.
        taken = sa.func.sum(sa.func.length(STRUCTURES.c.content) + sa.func.length(STRUCTURES.c.preview))
        query = sa.select(sa.func.count(), sa.func.coalesce(taken, 0)).where(STRUCTURES.c.user == user)
        count, held = connection.execute(query).one()
        most, most_mb = self._settings.max_structures_per_user, self._settings.max_structures_mb_per_user
        if count >= most:
            raise TooManyStructures(f"You have {most} structures, which is as many as one user may have.")
        if held + size > most_mb * 2**20:
            raise TooManyStructures(
                f"Your {count} structures take {held / 2**20:.1f} MB of the {most_mb} that one user's may, and this one has "
                f"{size / 2**20:.1f} MB."
            )

    def expires(self, kept: Kept) -> float:
        """When a structure is removed."""
        return kept.uploaded + self._settings.structure_retention_days * 86_400

    def _row(self, engine: sa.Engine, user: str, identifier: str, *columns: sa.Column[Any]) -> sa.RowMapping:
        query = sa.select(*_SHOWN, *columns).where(STRUCTURES.c.id == identifier, *self._of(user))
        with engine.connect() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise no_structure(identifier)
        return row

    def _of(self, user: str) -> list[sa.ColumnElement[bool]]:
        return [STRUCTURES.c.user == user, STRUCTURES.c.uploaded >= self._oldest()]

    def _oldest(self) -> float:
        return self._clock() - self._settings.structure_retention_days * 86_400

    def _open(self) -> sa.Engine:
        address = tables.url(self._settings)
        if address.startswith("sqlite"):
            self._settings.state.mkdir(parents=True, exist_ok=True)
        engine = tables.connect(address, CONNECTIONS)
        tables.prepare(engine)
        return engine

    async def _call(self, function: Callable[[sa.Engine], _Answer]) -> _Answer:
        run = asyncio.get_running_loop().run_in_executor
        try:
            async with self._opening:
                if self._engine is None:
                    self._engine = await run(self._threads, self._open)
            return await run(self._threads, function, self._engine)
        except (sa.exc.DataError, UnicodeEncodeError):
            raise InvalidRequest("A text of the request cannot be kept.", "Leave out control characters.") from None
        except SetupError as error:
            raise ServerUnavailable(f"Structures are not available: {error.detail}") from None
        except sa.exc.SQLAlchemyError:
            log.exception("the database of structures failed")
            raise ServerUnavailable("The database of structures does not answer.") from None


def id_of(user: str, content: bytes) -> str:
    """The id of a user's structure: 128 bits of the sha256 of both, so that the same upload gives the same id."""
    digest = hashlib.sha256(user.encode("utf-8", "replace") + b"\x00")
    digest.update(content)
    return digest.hexdigest()[:32]


def _kept(row: sa.RowMapping) -> Kept:
    return Kept(**{column.name: row[column.name] for column in _SHOWN})
