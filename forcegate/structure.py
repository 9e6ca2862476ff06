"""Any description of atoms -> ``Structure``: ASE Atoms, the REST JSON, or the text of a file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from forcegate.errors import InvalidStructure

TEXT_FORMATS: dict[str, str] = {
    "cif": "cif",
    "poscar": "vasp",
    "vasp": "vasp",
    "contcar": "vasp",
    "extxyz": "extxyz",
    "xyz": "xyz",
    "pdb": "proteindatabank",
    "gen": "gen",
    "xsf": "xsf",
}
"""Formats of ``{"format": ..., "text": ...}`` and the ASE reader behind each. Plain-text formats alone: ASE's trajectory and
JSON readers can build arbitrary objects and stay out. ``optimade`` is read here."""

MAX_ATOMIC_NUMBER = 118


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms as the contract sees them.

    Attributes:
        numbers: int32 ``[N]``, atomic numbers.
        positions: float64 ``[N, 3]``, A.
        cell: float64 ``[3, 3]``, A, lattice vectors as rows, zeros where there is none.
        pbc: bool ``[3]``.
        charge: total charge in e.
        spin: multiplicity 2S+1, 0 for the model's default.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=bool))
    charge: float = 0.0
    spin: int = 0

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def formula(self) -> str:
        """The formula in Hill order, such as ``CH4``."""
        return self.to_atoms().get_chemical_formula()

    def to_atoms(self) -> Atoms:
        """A new ASE ``Atoms``; charge and spin, where given, are in its ``info``."""
        info: dict[str, Any] = {}
        if self.charge:
            info["charge"] = self.charge
        if self.spin:
            info["spin"] = self.spin
        return Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc, info=info)


def from_atoms(atoms: Atoms) -> Structure:
    """A ``Structure`` from ASE ``Atoms``; ``info["charge"]`` and ``info["spin"]`` (2S+1) are used where present.

    Raises:
        InvalidStructure: an atom is no element (ASE's dummy atom ``X``), or charge or spin is not what it should be.
    """
    # The contract pads with atomic number 0, so a dummy atom at the end would vanish from the answer in silence.
    if not np.all((atoms.numbers >= 1) & (atoms.numbers <= MAX_ATOMIC_NUMBER)):
        raise InvalidStructure("The structure holds dummy atoms (X).", "Remove them: a force field knows real elements alone.")
    return Structure(
        numbers=np.asarray(atoms.numbers, dtype=np.int32),
        positions=np.array(atoms.positions, dtype=np.float64),
        cell=np.array(atoms.cell, dtype=np.float64),
        pbc=np.array(atoms.pbc, dtype=bool),
        charge=_number(atoms.info.get("charge"), "charge", 0.0),
        spin=_spin(atoms.info.get("spin")),
    )


def from_mapping(data: Any) -> Structure:
    """A ``Structure`` from the REST form of atoms, or from ``{"format": ..., "text": ...}``.

    Raises:
        InvalidStructure: a field is missing, has a wrong shape or names an unknown element.
    """
    if not isinstance(data, Mapping):
        raise InvalidStructure("`atoms` has to be an object.", "Give symbols and positions, or format and text.")
    if "text" in data or "format" in data:
        return from_atoms(read_text(data.get("text"), data.get("format")))
    numbers = _numbers(data)
    positions = _array(data.get("positions"), "positions", (len(numbers), 3))
    has_cell = data.get("cell") is not None
    cell = _cell(data["cell"]) if has_cell else np.zeros((3, 3))
    return Structure(
        numbers=numbers,
        positions=positions,
        cell=cell,
        pbc=_pbc(data.get("pbc"), default=has_cell),
        charge=_number(data.get("charge", _info(data, "charge")), "charge", 0.0),
        spin=_spin(data.get("spin", _info(data, "spin"))),
    )


def to_mapping(structure: Structure) -> dict[str, Any]:
    """The REST form of a structure, made of plain Python values."""
    mapping: dict[str, Any] = {
        "symbols": [chemical_symbols[number] for number in structure.numbers],
        "positions": structure.positions.tolist(),
        "cell": structure.cell.tolist() if structure.cell.any() else None,
        "pbc": structure.pbc.tolist(),
    }
    if structure.charge:
        mapping["charge"] = structure.charge
    if structure.spin:
        mapping["spin"] = structure.spin
    return mapping


def read_text(text: Any, file_format: Any) -> Atoms:
    """The one structure (the last, where there are several) in the text of a file.

    Raises:
        InvalidStructure: the format is unknown or the text does not parse.
    """
    if not isinstance(text, str) or not text.strip():
        raise InvalidStructure("`text` has to hold the contents of a structure file.", "It is empty or not a string.")
    name = str(file_format).lower()
    if name == "optimade":
        return _read_optimade(text)
    if name not in TEXT_FORMATS:
        raise InvalidStructure(
            f"The structure format {str(file_format)[:40]!r} is not known.",
            "Use one of: " + ", ".join([*TEXT_FORMATS, "optimade"]) + ".",
        )
    from ase.io import read

    try:
        # ASE's xyz reader drops the comment line's lattice; the extended one reads both kinds.
        atoms = read(io.StringIO(text), format="extxyz" if name == "xyz" else TEXT_FORMATS[name])
    except MemoryError:  # it is the caller's to tell how much there is
        raise
    except Exception as error:  # ASE's readers raise anything from IndexError to AssertionError on malformed text
        raise InvalidStructure(
            f"The text could not be read as {name}: {type(error).__name__}: {str(error)[:200]}",
            "Check that the file is complete and that `format` names its real format.",
        ) from error
    if not isinstance(atoms, Atoms):
        raise InvalidStructure(f"The {name} text holds no structure.", "Send a file with one structure.")
    # ASE keeps the first kind of atom of every site, and half an atom as a whole one.
    if any(share != 1 for site in (atoms.info.get("occupancy") or {}).values() for share in site.values()):
        raise _disordered(name)
    return atoms


def _disordered(file_format: str) -> InvalidStructure:
    return InvalidStructure(
        f"The {file_format} text describes a disordered structure: sites are occupied partly or by several elements.",
        "Send one ordered structure, such as pymatgen's OrderDisorderedStructureTransformation gives.",
    )


def _read_optimade(text: str) -> Atoms:
    import json

    try:
        entry = json.loads(text)
        entry = entry.get("data", entry)
        entry = entry[0] if isinstance(entry, list) else entry
        attributes = entry.get("attributes", entry)
        if any(len(kind["chemical_symbols"]) != 1 or kind.get("concentration", [1]) != [1] for kind in attributes["species"]):
            raise _disordered("optimade")
        elements = {species["name"]: species["chemical_symbols"][0] for species in attributes["species"]}
        return Atoms(
            [elements[site] for site in attributes["species_at_sites"]],
            positions=attributes["cartesian_site_positions"],
            cell=attributes.get("lattice_vectors"),
            pbc=attributes.get("dimension_types", [1, 1, 1]),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InvalidStructure(
            f"The text is not an OPTIMADE structure: {type(error).__name__}: {str(error)[:200]}",
            "Send one entry of /structures with species, species_at_sites, cartesian_site_positions and lattice_vectors.",
        ) from error


def _numbers(data: Mapping[str, Any]) -> np.ndarray:
    symbols, numbers = data.get("symbols"), data.get("numbers")
    if symbols is not None:
        if isinstance(symbols, str) or not isinstance(symbols, Sequence):
            raise InvalidStructure("`symbols` has to be a list of element symbols.", 'For example ["Na", "Cl"].')
        try:
            # `or` turns the dummy atom X, number 0, which is the contract's padding, into an unknown symbol.
            return np.fromiter((atomic_numbers[s] or atomic_numbers[""] for s in symbols), dtype=np.int32, count=len(symbols))
        except (KeyError, TypeError):
            unknown = sorted({str(s)[:20] for s in symbols if not isinstance(s, str) or not atomic_numbers.get(s)})
            raise InvalidStructure(
                f"Unknown element symbols: {', '.join(unknown[:5])}.",
                "Symbols are written as in the periodic table, Cu and not CU.",
            ) from None
    if numbers is None:
        raise InvalidStructure("`atoms` needs `symbols` or `numbers`.", 'For example "symbols": ["Cu"].')
    array = _array(numbers, "numbers", None)
    if array.ndim != 1 or not np.all(array == np.floor(array)) or np.any(array < 1) or np.any(array > MAX_ATOMIC_NUMBER):
        raise InvalidStructure(f"`numbers` has to be a flat list of integers from 1 to {MAX_ATOMIC_NUMBER}.", "")
    return array.astype(np.int32)


def _array(value: Any, name: str, shape: tuple[int, ...] | None) -> np.ndarray:
    if isinstance(value, str | bytes | Mapping) or value is None:
        raise InvalidStructure(f"`{name}` is missing or not a list.", "")
    try:
        # A null becomes NaN here, on purpose: JSON encoders write NaN as null, and the check for finite values names it.
        with np.errstate(all="ignore"):
            array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InvalidStructure(f"`{name}` has to hold numbers, in rows of equal length.", "") from None
    if shape == (0, 3) and array.size == 0:
        return np.zeros((0, 3))
    if shape is not None and array.shape != shape:
        raise InvalidStructure(
            f"`{name}` has shape {list(array.shape)}, expected {list(shape)}.", "One row of three coordinates for every atom."
        )
    return array


def _cell(value: Any) -> np.ndarray:
    array = _array(value, "cell", None)
    if array.shape == (3,):
        return np.diag(array)
    if array.shape != (3, 3):
        raise InvalidStructure("`cell` has to be three rows of three numbers, in A.", "For a box, three edge lengths will do.")
    return array


def _pbc(value: Any, default: bool) -> np.ndarray:
    if value is None:
        return np.full(3, default)
    if isinstance(value, bool):
        return np.full(3, value)
    if not isinstance(value, Sequence) or len(value) != 3 or not all(isinstance(v, bool) or v in (0, 1) for v in value):
        raise InvalidStructure("`pbc` has to be true, false or a list of three of them.", "For a slab: [true, true, false].")
    return np.array([bool(v) for v in value])


def _info(data: Mapping[str, Any], key: str) -> Any:
    info = data.get("info")
    return info.get(key) if isinstance(info, Mapping) else None


def _number(value: Any, name: str, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise InvalidStructure(f"`{name}` has to be a number.", "")
    try:
        return float(value)
    except OverflowError:
        raise InvalidStructure(f"`{name}` is too large.", "") from None


def _spin(value: Any) -> int:
    spin = _number(value, "spin", 0)
    if spin != spin or spin != int(min(max(spin, -1), 10_000)) or spin < 0:
        raise InvalidStructure("`spin` has to be the multiplicity 2S+1: 1, 2, 3 ..., or 0 for the model's default.", "")
    return int(spin)
