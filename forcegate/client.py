"""``Client`` and ``AsyncClient``: the REST service from Python. Energies in eV, forces in eV/A, stress in eV/A^3."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import httpx
import numpy as np
from ase import Atoms

from forcegate import arrays, batch_client, errors, task_client
from forcegate.retries import Attempts
from forcegate.structure import Structure, from_atoms, to_mapping

URL_VARIABLE = "FORCEGATE_URL"
KEY_VARIABLE = "FORCEGATE_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"

Encoding = Literal["json", "msgpack"]
AnyStructure = Atoms | Structure | Mapping[str, Any] | str | os.PathLike[str]
"""ASE Atoms, a ``Structure``, the REST form of atoms, the path of a file that ASE reads (its last structure), or an uploaded
structure by its id or the answer of ``upload``."""
IDENTIFIER = re.compile("[0-9a-f]{32}")
"""The id of an uploaded structure. A file of such a name has to be given as a ``Path``."""

MSGPACK = "application/msgpack"
Body = Mapping[str, Any] | None

DIRECT: dict[str, Any] = {"all://127.0.0.1": None, "all://localhost": None}
"""Where a proxy of the environment is not asked: this machine itself."""


class _Client:
    """What both clients share: how a request looks and what an answer means. ``call`` is theirs; it may return an awaitable."""

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float = 60.0,
        connect_timeout: float = 10.0,
        encoding: Encoding = "json",
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
    ) -> None:
        self.url = (url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.encoding = encoding
        self.answered = False
        """Whether the gateway has answered this client before."""
        self.headers = dict(headers or {})
        if api_key or (api_key is None and (api_key := os.environ.get(KEY_VARIABLE))):
            if not (api_key.isascii() and api_key.isprintable()):
                raise errors.InvalidRequest("The API key holds characters that no key has.", f"See {KEY_VARIABLE}, or `api_key`.")
            self.headers["Authorization"] = f"Bearer {api_key}"
        if encoding == "msgpack":
            _msgpack()

    def call(self, method: str, path: str, body: Body = None, part: str = "", attempts: Attempts | None = None) -> Any:
        """Any endpoint, such as ``call("GET", "/gpu-status")``: the decoded answer, or the one field of it that ``part`` names."""
        raise NotImplementedError

    def health(self) -> Any:
        """The state of the gateway and of its workers: the answer of GET /health."""
        return self.call("GET", "/health")

    def models(self) -> Any:
        """A list of every model with its state, elements, heads, functional, checkpoint hash and licence."""
        return self.call("GET", "/api/v1/models", part="models")

    def single_point(self, atoms: AnyStructure, model: str, **options: Any) -> Any:
        """Energy, forces and stress of one structure: the answer of POST /api/v1/single_point.

        ``stress`` is None in it unless the structure is periodic in all three directions. ``options`` are further fields of the
        body: ``head``, ``compute_forces``, ``compute_stress``, ``dispersion``.
        """
        return self.call("POST", "/api/v1/single_point", {"model_name": model, "atoms": self._atoms(atoms), **options})

    def batch(self, structures: Iterable[AnyStructure], model: str, **options: Any) -> Any:
        """A list with one answer, or ``{"error": ...}``, for each structure, in order; ``options`` as of ``single_point``.

        Structures whose error can pass are sent again, as a whole call is. For very many structures use ``forcegate.evaluate``,
        which has no limit.
        """
        body = {"model_name": model, "atoms": [self._atoms(structure) for structure in structures], **options}
        return self._send_batch(body)

    def _send_batch(self, body: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def multi_model(self, atoms: AnyStructure, models: Sequence[str], **task_params: Any) -> Any:
        """One structure at several models, with their comparison; ``task_params`` such as ``heads={model: head}``."""
        body = {"model_names": list(models), "task": "single_point", "task_params": task_params, "atoms": self._atoms(atoms)}
        return self.call("POST", "/api/v1/multi_model", body)

    def upload(self, atoms: AnyStructure, name: str | None = None) -> Any:
        """Keeps a structure at the service: the answer of POST /api/v1/structures, with its ``structure_id`` and ``preview``.

        The id stands wherever a structure may. The same structure has the same one. A path is read here, and its last part is the
        name when none is given.
        """
        if name is None and isinstance(atoms, str | os.PathLike):
            name = os.path.basename(os.fspath(atoms))
        return self.call("POST", "/api/v1/structures", {"atoms": self._atoms(atoms), **({"name": name} if name else {})})

    def structures(self, limit: int = 50, offset: int = 0) -> Any:
        """A list of one's own uploaded structures, the newest first."""
        return self.call("GET", f"/api/v1/structures{task_client.query({'limit': limit, 'offset': offset})}", part="structures")

    def structure(self, identifier: str) -> Any:
        """An uploaded structure with its ``atoms``."""
        return self.call("GET", f"/api/v1/structures/{identifier}")

    def delete_structure(self, identifier: str) -> Any:
        """Removes an uploaded structure; tasks that were made of it have their own copy."""
        return self.call("DELETE", f"/api/v1/structures/{identifier}")

    def submit(
        self, kind: str, atoms: Any, model: str | Sequence[str], *, options: Mapping[str, Any] | None = None, **parameters: Any
    ) -> Any:
        """Queues a calculation: the answer of POST /api/v1/tasks/{kind}, whose ``task_id`` names the task.

        Args:
            kind: ``optimization``, ``stability``, ``bulk-modulus``, ... as GET /docs lists them.
            atoms: one structure; a list of them for ``batch``.
            model: name of the model; several of them for ``multi-model``.
            options: ``priority``, ``timeout_seconds``, ``callback``, ``idempotency_key``.
            parameters: of the calculation.
        """
        structures = [mapping(each) for each in atoms] if kind == "batch" else mapping(atoms)
        asked = {"model_name": model} if isinstance(model, str) else {"model_names": list(model)}
        body = {**asked, "atoms": structures, **parameters, **({"options": dict(options)} if options else {})}
        return self.call("POST", f"/api/v1/tasks/{kind.replace('_', '-')}", body)

    def tasks(self, **filters: Any) -> Any:
        """A list of tasks, the newest first; ``filters`` are status, kind, model, user, limit, offset."""
        return self.call("GET", f"/api/v1/tasks{task_client.query(filters)}", part="tasks")

    def task(self, task: str) -> Any:
        """A task as it is now: status, position, progress, error."""
        return self.call("GET", f"/api/v1/tasks/{task}")

    def result(self, task: str) -> Any:
        """The result of a task that is completed; else its error, or ``TaskNotFinished``."""
        return self.call("GET", f"/api/v1/tasks/{task}/result")

    def cancel(self, task: str) -> Any:
        """Ends a task: at once where it waits, within one step where it runs."""
        return self.call("POST", f"/api/v1/tasks/{task}/cancel")

    def retry(self, task: str) -> Any:
        """Queues a task that failed, was cancelled or timed out once more; it goes on from its last state."""
        return self.call("POST", f"/api/v1/tasks/{task}/retry")

    def _atoms(self, atoms: AnyStructure) -> dict[str, Any]:
        """The REST form of a structure, with arrays for their bytes where the encoding has them."""
        if self.encoding != "msgpack" or isinstance(atoms, Mapping) or _is_id(atoms):
            return mapping(atoms)
        return array_mapping(_structure(atoms))

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        headers = dict(self.headers)
        content = None
        if self.encoding == "msgpack":
            headers["Accept"] = f"{MSGPACK}; {arrays.PARAMETER}"
        if body is not None:
            headers["Content-Type"] = MSGPACK if self.encoding == "msgpack" else "application/json"
            content = _msgpack().packb(body, default=_array) if self.encoding == "msgpack" else json.dumps(body).encode()
        return {"method": method, "url": self.url + path, "headers": headers, "content": content}

    def _answer(self, response: httpx.Response, part: str) -> Any:
        """The decoded body of a good answer, or its field ``part``.

        Raises:
            ForcegateError: the typed error of any other answer.
        """
        self.answered = True
        try:
            packed = response.headers.get("Content-Type", "").startswith(MSGPACK)
            body = (
                _msgpack().unpackb(response.content, object_hook=arrays.unpack_hook, strict_map_key=False)
                if packed
                else response.json()
            )
            if response.is_success:
                return body[part] if part else body
        except (ValueError, KeyError, TypeError):
            body = {"detail": f"{self.url} answered {response.status_code} with a body that is not Forcegate's."}
        raise typed(response.status_code, body, response.headers.get("X-Request-ID", ""))

    def _pause(self, error: errors.ForcegateError, attempts: Attempts, response: httpx.Response | None) -> float:
        asked = response.headers.get("Retry-After", "") if response is not None else ""
        # The header may hold a date instead of seconds; our gateway sends seconds.
        return attempts.pause(error, self.answered, float(asked) if asked.replace(".", "", 1).isdigit() else 0.0)

    def attempts(self) -> Attempts:
        """The attempts at one call."""
        return Attempts(self.timeout, self.connect_timeout)

    def _typed(self, failure: httpx.TransportError | errors.ForcegateError) -> errors.ForcegateError:
        if isinstance(failure, errors.ForcegateError):
            return failure
        if isinstance(failure, httpx.UnsupportedProtocol):
            return errors.InvalidRequest(f"{self.url} is not an address.", "It has to look like http://127.0.0.1:8000.")
        if isinstance(failure, httpx.TimeoutException) and not isinstance(failure, httpx.ConnectTimeout):
            return errors.DeadlineExceeded(f"{self.url} did not answer within {self.timeout:g} s.")
        return errors.ServerUnavailable(
            f"Nothing answers at {self.url}.", f"Start the service with `forcegate serve`, or name its address in {URL_VARIABLE}."
        )


class Client(_Client):
    """The REST service. Threads may share a client; use it as a context manager, or ``close`` it.

    What can pass (a model that is restarting, a full queue) is waited for and tried again within ``timeout``, the time in
    ``Retry-After`` honoured. Every other error is raised as its type in ``forcegate.errors``, with the answer's ``request_id``.

    Args:
        url: address of the gateway; ``FORCEGATE_URL``, else ``http://127.0.0.1:8000``.
        timeout: seconds for one call, retries included.
        connect_timeout: seconds to wait for a gateway that has never answered this client.
        encoding: ``json``, or ``msgpack`` where that package is installed; quicker for large structures, since arrays travel as
            their bytes: forces, stress and further outputs are then numpy arrays in the answers.
        headers: sent with every request.
        api_key: where the service asks for one; ``FORCEGATE_API_KEY`` when left out.
    """

    def __init__(self, url: str | None = None, **options: Any) -> None:
        super().__init__(url, **options)
        self.http = httpx.Client(mounts=DIRECT)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections."""
        self.http.close()

    def call(self, method: str, path: str, body: Body = None, part: str = "", attempts: Attempts | None = None) -> Any:
        attempts, request = attempts or self.attempts(), self._request(method, path, body)
        while True:
            response = None
            try:
                response = self.http.request(**request, timeout=attempts.remaining)
                return self._answer(response, part)
            except (httpx.TransportError, errors.ForcegateError) as failure:
                error = self._typed(failure)
            time.sleep(self._pause(error, attempts, response))

    def _send_batch(self, body: Mapping[str, Any]) -> list[Any]:
        return batch_client.batch_sync(self, body)

    def wait(self, task: str, timeout: float = 86_400.0, on_progress: Callable[[dict[str, Any]], None] | None = None) -> Any:
        """The result of a task as soon as there is one, or its error; ``on_progress`` is given the task at each look.

        Raises:
            DeadlineExceeded: it is not final after ``timeout`` seconds; it goes on.
        """
        return task_client.wait_sync(self, task, timeout, on_progress)

    def events(self, task: str) -> Iterator[dict[str, Any]]:
        """Everything that happens to a task, from its beginning until it is final: ``{"number", "event", "time", ...}``."""
        return task_client.events_sync(self, task)


class AsyncClient(_Client):
    """``Client`` for asyncio: the same arguments and methods, to be awaited; ``async with``, or ``await client.close()``."""

    def __init__(self, url: str | None = None, **options: Any) -> None:
        super().__init__(url, **options)
        self.http = httpx.AsyncClient(mounts=DIRECT)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connections."""
        await self.http.aclose()

    async def call(self, method: str, path: str, body: Body = None, part: str = "", attempts: Attempts | None = None) -> Any:
        attempts, request = attempts or self.attempts(), self._request(method, path, body)
        while True:
            response = None
            try:
                response = await self.http.request(**request, timeout=attempts.remaining)
                return self._answer(response, part)
            except (httpx.TransportError, errors.ForcegateError) as failure:
                error = self._typed(failure)
            await asyncio.sleep(self._pause(error, attempts, response))

    async def _send_batch(self, body: Mapping[str, Any]) -> list[Any]:
        return await batch_client.batch_async(self, body)

    async def wait(self, task: str, timeout: float = 86_400.0, on_progress: Callable[[dict[str, Any]], None] | None = None) -> Any:
        """See ``Client.wait``."""
        return await task_client.wait_async(self, task, timeout, on_progress)

    def events(self, task: str) -> AsyncIterator[dict[str, Any]]:
        """See ``Client.events``; for ``async for``."""
        return task_client.events_async(self, task)


def mapping(atoms: AnyStructure) -> dict[str, Any]:
    """The REST form of any description of a structure.

    Raises:
        InvalidStructure: a file that cannot be read.
    """
    if _is_id(atoms):
        return {"structure_id": atoms}
    if isinstance(atoms, Mapping):
        # Of the answer of an upload the id is enough.
        return {"structure_id": atoms["structure_id"]} if "structure_id" in atoms and "formula" in atoms else dict(atoms)
    return to_mapping(_structure(atoms))


def _is_id(atoms: AnyStructure) -> bool:
    return isinstance(atoms, str) and IDENTIFIER.fullmatch(atoms) is not None


def array_mapping(structure: Structure) -> dict[str, Any]:
    """The REST form of a structure with arrays in place of lists, for msgpack."""
    form: dict[str, Any] = {"numbers": structure.numbers, "positions": structure.positions, "pbc": structure.pbc.tolist()}
    if structure.cell.any():
        form["cell"] = structure.cell
    if structure.charge:
        form["charge"] = structure.charge
    if structure.spin:
        form["spin"] = structure.spin
    return form


def _structure(atoms: Atoms | Structure | str | os.PathLike[str]) -> Structure:
    if isinstance(atoms, str | os.PathLike):
        atoms = read_file(atoms)
    return atoms if isinstance(atoms, Structure) else from_atoms(atoms)


def read_file(path: str | os.PathLike[str]) -> Atoms:
    """The last structure in a file of any format that ASE reads.

    Raises:
        InvalidStructure: there is no such file, or it does not parse.
    """
    from ase.io import read

    try:
        return cast(Atoms, read(os.fspath(path)))
    except Exception as error:  # ASE's readers raise anything from IndexError to AssertionError on malformed text
        raise errors.InvalidStructure(
            f"{os.fspath(path)} cannot be read: {type(error).__name__}: {str(error)[:200]}",
            "It has to be a structure file that ASE reads, such as CIF, POSCAR, extxyz or a trajectory.",
        ) from None


def typed(status: int, body: Any, request_id: str) -> errors.ForcegateError:
    """The error in the body of an answer; one of a code that this client does not know keeps the gateway's word on retrying."""
    fields = body if isinstance(body, Mapping) else {}
    detail, hint = str(fields.get("detail", f"The gateway answered {status}.")), str(fields.get("hint", ""))
    kind = errors.BY_CODE.get(str(fields.get("code")))
    if kind is None:
        retryable = bool(fields.get("retryable", status in (429, 502, 503)))
        kind = type(
            "UnknownError", (errors.ForcegateError,), {"code": str(fields.get("code")), "status": status, "retryable": retryable}
        )
    error = kind(detail, hint)
    for name in ("points", "task_id"):
        if name in fields and hasattr(error, name):
            setattr(error, name, fields[name])
    error.request_id = request_id
    return error


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return arrays.packed(value)
    raise TypeError(f"cannot encode {type(value).__name__}")


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError:
        raise errors.SetupError("encoding='msgpack' needs the package msgpack.", "Install it: pip install msgpack.") from None
    return msgpack
