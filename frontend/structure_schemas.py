"""The shapes of uploaded structures, for /docs and openapi.json, beside ``frontend.schemas``."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from frontend.schemas import AnyUpload, Atoms, Vector


class StructureUpload(BaseModel):
    """A structure to be kept. The fields of `atoms` may also stand alone."""

    atoms: AnyUpload
    name: str | None = Field(None, description="A label of one's own; 200 characters of it are kept.")


class PreviewCell(BaseModel):
    """A cell."""

    vectors: Annotated[list[Vector], Field(min_length=3, max_length=3)] = Field(description="Lattice vectors as rows, A.")
    lengths: Vector = Field(description="A.")
    angles: Vector = Field(description="alpha, beta, gamma in degrees.")
    volume: float | None = Field(description="A^3; null where the vectors span none.")


class SpaceGroup(BaseModel):
    """A space group, as spglib finds it."""

    number: int = Field(ge=1, le=230)
    symbol: str = Field(description="International (Hermann-Mauguin) symbol.")
    tolerance: float = Field(description="Distance within which positions count as equal, A.")


class Preview(BaseModel):
    """What a structure is, at a glance."""

    formula: str = Field(description="Hill order.")
    reduced_formula: str
    natoms: int
    elements: dict[str, int] = Field(description="Atoms by element.")
    pbc: list[bool]
    charge: float
    spin: int = Field(description="Multiplicity 2S+1; 0 where it is not given.")
    cell: PreviewCell | None
    density: float | None = Field(description="g/cm^3; null unless periodic in all three directions.")
    spacegroup: SpaceGroup | None = Field(description="Null unless periodic in all three directions, and for many atoms.")
    warnings: list[str] = Field(description="What looks wrong, or will be refused.")


class StructureView(BaseModel):
    """An uploaded structure without its atoms."""

    structure_id: str = Field(description="Names it in place of `atoms`; the same for the same structure and user.")
    name: str
    formula: str
    natoms: int
    uploaded_at: str = Field(description="ISO 8601, UTC.")
    expires_at: str = Field(description="When it is removed; an upload of the same structure puts that off.")


class StructureKept(StructureView):
    """A structure that was uploaded."""

    preview: Preview
    request_id: str


class StructureWithAtoms(StructureView):
    """An uploaded structure."""

    atoms: Atoms


class StructureWithPreview(StructureView):
    """An uploaded structure and its preview."""

    preview: Preview


class StructureList(BaseModel):
    """One page of structures, the newest first."""

    total: int
    structures: list[StructureView]


class StructureDeleted(BaseModel):
    """A structure that was removed."""

    structure_id: str
    deleted: bool


ALL: Final[list[type[BaseModel]]] = [
    StructureUpload,
    PreviewCell,
    SpaceGroup,
    Preview,
    StructureView,
    StructureKept,
    StructureWithAtoms,
    StructureWithPreview,
    StructureList,
    StructureDeleted,
]

FORM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "A structure file; its name tells the format."},
        "format": {"type": "string", "description": "The format, where the name does not tell it."},
        "name": {"type": "string", "description": "A label of one's own, in place of the file's name."},
    },
}
"""The fields of a form."""
