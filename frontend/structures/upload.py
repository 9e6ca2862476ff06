"""An uploaded structure: read from a file or a body, and described. Plain functions without I/O, for the decoder processes alone.

The name of a file is a label; of a path in it the last part is kept. It is never opened.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from forcegate.errors import InvalidRequest, InvalidStructure
from forcegate.structure import TEXT_FORMATS
from frontend.entries import cleaned, kind_of, read_structure
from frontend.requests import Limits, atoms_of, loads
from frontend.structures.packing import pack
from frontend.structures.preview import describe

# What is wrong with a form is its sender's to know; the log of the gateway is not for it.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

MULTIPART: Final = "multipart/form-data"
FORMATS: Final = (*TEXT_FORMATS, "optimade")
"""Plain-text formats alone: a pickle, and a trajectory, database or JSON of ASE, can make its reader run what is in it."""
MAX_PARTS: Final = 8
MAX_NAME: Final = 200
_SUFFIXES: Final = {"vasp": "vasp", "poscar": "vasp", "contcar": "vasp", "ent": "pdb"} | {
    name: name for name in FORMATS if name not in ("poscar", "contcar", "optimade")
}
_PACKED: Final = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class Upload:
    """A structure that is to be kept.

    Attributes:
        name: what its owner calls it; may be empty.
        formula: Hill order.
        atoms: how many.
        content: ``pack`` of the structure, the same bytes for the same structure.
        preview: JSON; ``frontend.structures.preview``.
    """

    name: str
    formula: str
    atoms: int
    content: bytes
    preview: dict[str, Any]


def read(body: bytes, media: str, limits: Limits) -> Upload:
    """The structure in a body: ``{"atoms": ..., "name": ...}``, the atoms alone, or a form with a file.

    Args:
        media: ``json``, ``msgpack``, or the Content-Type of a form.

    Raises:
        InvalidRequest: the body cannot be read, or its format is none that is read.
        InvalidStructure: the structure cannot be understood, or every model would refuse it.
        StructureTooLarge: it has too many atoms.
    """
    entry, name = _form(body, media) if media.startswith(MULTIPART) else _fields(body, media)
    if isinstance(entry, Mapping) and entry.get("structure_id") is not None:
        raise InvalidRequest("`structure_id` names a structure that is kept already.", "Send `atoms`.")
    if isinstance(entry, Mapping) and ("text" in entry or "format" in entry):
        entry = {"text": entry.get("text"), "format": _known(entry.get("format"))}
    structure = read_structure(entry, limits)
    preview = describe(structure)
    return Upload(_label(name), preview["formula"], len(structure), pack(structure), preview)


def _fields(body: bytes, media: str) -> tuple[Any, Any]:
    """The structure and its name in JSON or msgpack."""
    data = loads(body, media)
    if not isinstance(data, Mapping):
        raise InvalidRequest(f"The body has to be an object, and it is {kind_of(data)}.")
    name = data.get("name")
    if name is not None and not isinstance(name, str):
        raise InvalidRequest(f"`name` has to be a text, and it is {kind_of(name)}.", "")
    bare = data.get("atoms") is None and any(key in data for key in ("text", "format", "positions", "symbols", "numbers"))
    return (data if bare else atoms_of(data)), name


@dataclass
class _Part:
    name: str = ""
    filename: str | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)
    data: list[bytes] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        return b"".join(self.data)


class _Form:
    """Puts the parts of a form together as the parser finds them."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.complete = False
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())

    def on_part_begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.", "Send one file.")
        self.parts.append(_Part())

    def on_header_begin(self) -> None:
        self._header = (bytearray(), bytearray())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        self.parts[-1].headers[bytes(self._header[0]).lower()] = bytes(self._header[1])

    def on_headers_finished(self) -> None:
        part = self.parts[-1]
        _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        part.filename = None if filename is None else filename.decode("utf-8", "replace")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data.append(data[start:end])

    def on_end(self) -> None:
        self.complete = True


def _form(body: bytes, media: str) -> tuple[dict[str, Any], str]:
    """The file of a form as an entry of a body, and its name. The format is the field's, or that of the file's name."""
    _, options = parse_options_header(media.encode("latin-1", "replace"))
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise InvalidRequest("The form's Content-Type has no boundary.", "Let your client set it: curl -F file=@FILE.")
    form = _Form()
    callbacks: Any = {name: getattr(form, name) for name in dir(form) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except (MultipartParseError, ValueError) as error:
        raise InvalidRequest(
            f"The form cannot be read: {cleaned(str(error))[:200]}.", "Send it as curl -F file=@FILE does."
        ) from None
    if not form.complete:
        raise InvalidRequest("The form has no end.", "Send it as curl -F file=@FILE does.")
    files = [part for part in form.parts if part.filename is not None or part.name == "file"]
    if len(files) != 1:
        raise InvalidRequest(f"The form holds {len(files)} files, and it has to be one.", "Send it as curl -F file=@FILE does.")
    fields = {part.name: part.content[:1000].decode("utf-8", "replace") for part in form.parts if part is not files[0]}
    filename = re.split(r"[/\\]", files[0].filename or "")[-1]
    given = fields.get("format") or _format_of(filename)
    entry = {"format": _known(given, filename), "text": _text(files[0].content)}
    return entry, fields.get("name") or filename


def _format_of(filename: str) -> str:
    """The format that a file's name tells of: its ending, or the whole of it, as in POSCAR."""
    return _SUFFIXES.get(filename.lower().rpartition(".")[2], "")


def _known(given: Any, filename: str = "") -> str:
    """A format that is read.

    Raises:
        InvalidRequest: it is none.
    """
    name = given.lower().strip() if isinstance(given, str) else ""
    if name in FORMATS:
        return name
    said = f"The format {given[:40]!r} is not read here." if isinstance(given, str) and given else "The format is missing."
    if filename and not given:
        said = f"The name {filename[:60]!r} does not tell the file's format."
    raise InvalidRequest(cleaned(said), f"Give `format` as one of: {', '.join(FORMATS)}.")


def _text(content: bytes) -> str:
    for magic, kind in _PACKED.items():
        if content.startswith(magic):
            raise InvalidStructure(f"The file is compressed ({kind}).", "Send it unpacked.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\x00"
    if "\x00" in text:
        raise InvalidStructure("The file is not text in UTF-8.", f"These formats are read: {', '.join(FORMATS)}.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _label(name: Any) -> str:
    """What is kept of a name: its printable characters."""
    return "".join(letter for letter in cleaned(name or "")[:MAX_NAME] if letter.isprintable())
