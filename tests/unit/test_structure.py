"""Structures from every form that is taken, and words for every form that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forcegate.errors import InvalidStructure
from forcegate.structure import TEXT_FORMATS, Structure, from_atoms, from_mapping, read_text, to_mapping

PRECISION = {"pdb": 2e-3, "extxyz": 1e-7, "xyz": 1e-7}
"""A: what the format's own digits keep."""


def crystal() -> Atoms:
    """NaCl in a sheared cell, everything displaced."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.set_cell(atoms.cell.array @ np.array([[1.0, 0.02, 0.0], [0.0, 1.0, -0.03], [0.01, 0.0, 1.0]]), scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    return atoms


def text_of(atoms: Atoms, name: str, folder: Path) -> str:
    """The text that ASE writes in that format."""
    path = folder / "file"
    write(path, atoms, format="extxyz" if name == "xyz" else TEXT_FORMATS[name])
    return path.read_text()


def bonds(atoms: Atoms) -> np.ndarray:
    """All distances by element, which say the same of a structure whatever its orientation and the order of its atoms."""
    symbols = np.array(
        sorted(range(len(atoms)), key=lambda k: (atoms.numbers[k], *np.round(atoms.get_all_distances(mic=True)[k], 2)))
    )
    return np.sort(atoms.get_all_distances(mic=True)[symbols][:, symbols], axis=1)


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_a_crystal_in_every_format(name: str, tmp_path: Path) -> None:
    given_atoms = crystal()
    found = read_text(text_of(given_atoms, name, tmp_path), name)
    assert found.pbc.all()
    assert found.get_chemical_formula() == given_atoms.get_chemical_formula()
    assert found.get_volume() == pytest.approx(given_atoms.get_volume(), rel=1e-3 if name == "pdb" else 1e-7)
    np.testing.assert_allclose(
        np.sort(bonds(found).ravel()), np.sort(bonds(given_atoms).ravel()), atol=4 * PRECISION.get(name, 1e-6)
    )


@pytest.mark.parametrize("name", ["xyz", "extxyz", "pdb", "gen", "xsf", "cif"])
def test_a_molecule_in_every_format_that_holds_one(name: str, tmp_path: Path) -> None:
    water = molecule("H2O")
    found = from_atoms(read_text(text_of(water, name, tmp_path), name))
    assert not found.pbc.any()
    np.testing.assert_array_equal(found.numbers, water.numbers)
    np.testing.assert_allclose(found.to_atoms().get_all_distances(), water.get_all_distances(), atol=PRECISION.get(name, 1e-6) * 2)


@pytest.mark.parametrize("comment", ["water", "", "E = -1.0 eV", "step 1, time=0.5 fs {x", "it's \"quoted", "1 2 3", "charge"])
def test_plain_xyz_with_any_comment(comment: str) -> None:
    found = read_text(f"2\n{comment}\nH 0 0 0\nH 0 0 0.74\n", "xyz")
    assert found.get_chemical_formula() == "H2"
    assert found.get_distance(0, 1) == pytest.approx(0.74)


def test_the_last_of_several_structures_and_formats_in_any_case() -> None:
    text = "1\n\nH 0 0 0\n1\n\nHe 0 0 0\n"
    assert read_text(text, "XYZ").get_chemical_formula() == "He"


def test_the_lattice_of_an_extended_xyz_is_kept_by_both_names() -> None:
    text = '1\nLattice="4 0 0 0 4 0 0 0 4" pbc="T T F"\nCu 0 0 0\n'
    for name in ("xyz", "extxyz"):
        found = read_text(text, name)
        assert found.pbc.tolist() == [True, True, False]
        assert found.cell.lengths().tolist() == [4, 4, 4]


@pytest.mark.parametrize("name", TEXT_FORMATS)
@pytest.mark.parametrize("damage", ["nonsense", "half", "letters"])
def test_damaged_files_are_refused_in_words(name: str, damage: str, tmp_path: Path) -> None:
    text = text_of(crystal(), name, tmp_path)
    damaged = {"nonsense": "!!\n" * 20, "half": text[: len(text) // 2], "letters": text.replace(".", "?")}[damage]
    found: Atoms | InvalidStructure
    try:
        found = read_text(damaged, name)
    except InvalidStructure as error:
        found = error
    if isinstance(found, Atoms):
        # Any text is a PDB file without atoms, which the model refuses. Half a file may be a whole one with fewer atoms.
        assert len(found) < 8
        assert damage == "half" or len(found) == 0
    else:
        assert name in found.detail
        assert found.hint


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("1\n\nH 0 0 0\n", "traj", "not known"),
        ("1\n\nH 0 0 0\n", "json", "not known"),
        ("1\n\nH 0 0 0\n", None, "not known"),
        ("1\n\nH 0 0 0\n", "../etc", "not known"),
        ("", "cif", "has to hold"),
        ("   \n", "cif", "has to hold"),
        (None, "cif", "has to hold"),
        (7, "cif", "has to hold"),
        ("data_x\n", "cif", "could not be read"),
    ],
)
def test_what_is_no_file(text: Any, name: Any, words: str) -> None:
    with pytest.raises(InvalidStructure, match=words):
        read_text(text, name)


CIF = """data_x
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
{sites}
"""


@pytest.mark.parametrize(
    ("sites", "ordered"),
    [
        ("Na1 Na 0 0 0 1.0\nCl1 Cl 0.5 0.5 0.5 1", True),
        ("Na1 Na 0 0 0 0.6\nK1 K 0 0 0 0.4\nCl1 Cl 0.5 0.5 0.5 1.0", False),
        ("Na1 Na 0 0 0 1.0\nCl1 Cl 0.5 0.5 0.5 0.5", False),
    ],
)
def test_disordered_crystals_are_refused(sites: str, ordered: bool) -> None:
    """ASE would keep the sodium, drop the potassium, and take half a chlorine for a whole one."""
    if ordered:
        assert read_text(CIF.format(sites=sites), "cif").get_chemical_formula() == "ClNa"
    else:
        with pytest.raises(InvalidStructure, match="disordered"):
            read_text(CIF.format(sites=sites), "cif")


def optimade(**changes: Any) -> str:
    attributes = {
        "species": [
            {"name": "Na", "chemical_symbols": ["Na"], "concentration": [1.0]},
            {"name": "chlorine", "chemical_symbols": ["Cl"]},
        ],
        "species_at_sites": ["Na", "chlorine"],
        "cartesian_site_positions": [[0, 0, 0], [2.8, 0, 0]],
        "lattice_vectors": [[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]],
        "dimension_types": [1, 1, 1],
    }
    return json.dumps({"data": [{"id": "1", "attributes": attributes | changes}]})


def test_optimade() -> None:
    found = from_mapping({"format": "optimade", "text": optimade()})
    assert found.formula == "ClNa"
    assert found.pbc.all()
    slab = from_mapping({"format": "optimade", "text": optimade(dimension_types=[1, 1, 0])})
    assert slab.pbc.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not an OPTIMADE"),
        ("[]", "not an OPTIMADE"),
        ('{"data": []}', "not an OPTIMADE"),
        ('{"data": null}', "not an OPTIMADE"),
        ("3", "not an OPTIMADE"),
        (optimade(species_at_sites=["Na", "X"]), "not an OPTIMADE"),
        (optimade(cartesian_site_positions=[[0, 0, 0]]), "not an OPTIMADE"),
        (optimade(species=[{"name": "Na", "chemical_symbols": ["Na", "K"], "concentration": [0.5, 0.5]}]), "disordered"),
        (optimade(species=[{"name": "Na", "chemical_symbols": ["Na"], "concentration": [0.5]}]), "disordered"),
    ],
)
def test_what_is_no_optimade_structure(text: str, words: str) -> None:
    with pytest.raises(InvalidStructure, match=words):
        read_text(text, "optimade")


def mapping(**changes: Any) -> dict[str, Any]:
    return {"symbols": ["Na", "Cl"], "positions": [[0, 0, 0], [2.8, 0, 0]], "cell": [[4, 0, 0], [0, 4, 0], [0, 0, 4]]} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"symbols": ["Na", "cl"]}, "Unknown element symbols: cl"),
        ({"symbols": ["Na", "X"]}, "Unknown element symbols: X"),
        ({"symbols": ["Na", ""]}, "Unknown element symbols"),
        ({"symbols": ["Na", None]}, "Unknown element symbols: None"),
        ({"symbols": ["Na", ["Cl"]]}, "Unknown element symbols"),
        ({"symbols": "NaCl"}, "list of element symbols"),
        ({"symbols": {"Na": 1}}, "list of element symbols"),
        ({"symbols": None}, "needs `symbols` or `numbers`"),
        ({"symbols": None, "numbers": [11, 0]}, "integers from 1 to 118"),
        ({"symbols": None, "numbers": [11, 119]}, "integers from 1 to 118"),
        ({"symbols": None, "numbers": [11, 17.5]}, "integers from 1 to 118"),
        ({"symbols": None, "numbers": [[11, 17]]}, "integers from 1 to 118"),
        ({"symbols": None, "numbers": [11, None]}, "integers from 1 to 118"),
        ({"symbols": None, "numbers": "11"}, "not a list"),
        ({"positions": None}, "`positions` is missing"),
        ({"positions": [[0, 0, 0]]}, r"shape \[1, 3\], expected \[2, 3\]"),
        ({"positions": [[0, 0], [1, 1]]}, r"shape \[2, 2\]"),
        ({"positions": [[0, 0, 0], [1, 1]]}, "rows of equal length"),
        ({"positions": [[0, 0, 0], [1, 1, "a"]]}, "has to hold numbers"),
        ({"positions": "0 0 0"}, "not a list"),
        ({"positions": [[0, 0, 0], [10**400, 0, 0]]}, "has to hold numbers"),
        ({"cell": [[4, 0, 0], [0, 4, 0]]}, "three rows of three"),
        ({"cell": "cubic"}, "not a list"),
        ({"cell": [4, 4, 4, 90, 90, 90]}, "three rows of three"),
        ({"pbc": "TTF"}, "true, false or a list"),
        ({"pbc": [True, True]}, "true, false or a list"),
        ({"pbc": [True, True, 2]}, "true, false or a list"),
        ({"pbc": 1}, "true, false or a list"),
        ({"charge": "1"}, "`charge` has to be a number"),
        ({"charge": True}, "`charge` has to be a number"),
        ({"charge": 10**400}, "`charge` is too large"),
        ({"spin": 1.5}, "multiplicity"),
        ({"spin": -1}, "multiplicity"),
        ({"spin": float("nan")}, "multiplicity"),
        ({"spin": 10**9}, "multiplicity"),
    ],
)
def test_mappings_that_are_no_structure(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidStructure, match=words):
        from_mapping(mapping(**changes))


@pytest.mark.parametrize("data", [None, [], "NaCl", 3, [mapping()]])
def test_what_is_no_mapping(data: Any) -> None:
    with pytest.raises(InvalidStructure, match="has to be an object"):
        from_mapping(data)


def test_a_null_coordinate_is_not_a_number_and_not_zero() -> None:
    """JSON encoders write NaN as null; the check for finite values then names the atom."""
    found = from_mapping(mapping(positions=[[0, 0, 0], [2.8, None, 0]]))
    assert np.isnan(found.positions[1, 1])
    assert np.isfinite(found.positions).sum() == 5


@pytest.mark.parametrize(
    ("changes", "pbc", "edges"),
    [
        ({}, [True] * 3, [4, 4, 4]),
        ({"cell": None}, [False] * 3, [0, 0, 0]),
        ({"cell": None, "pbc": False}, [False] * 3, [0, 0, 0]),
        ({"cell": [3, 4, 5]}, [True] * 3, [3, 4, 5]),
        ({"pbc": [True, True, False]}, [True, True, False], [4, 4, 4]),
        ({"pbc": [1, 0, 1]}, [True, False, True], [4, 4, 4]),
        ({"pbc": False}, [False] * 3, [4, 4, 4]),
    ],
)
def test_cell_and_periodicity(changes: dict[str, Any], pbc: list[bool], edges: list[float]) -> None:
    found = from_mapping(mapping(**changes))
    assert found.pbc.tolist() == pbc
    assert np.diag(found.cell).tolist() == edges


def test_no_atoms_are_a_structure() -> None:
    """It is the model that refuses it, with its own error."""
    assert len(from_mapping({"symbols": [], "positions": []})) == 0
    assert len(from_atoms(Atoms())) == 0


def test_charge_and_spin_from_where_ase_keeps_them() -> None:
    for data in (mapping(charge=-1, spin=2), mapping(info={"charge": -1, "spin": 2})):
        found = from_mapping(data)
        assert (found.charge, found.spin) == (-1.0, 2)
    atoms = found.to_atoms()
    assert atoms.info == {"charge": -1.0, "spin": 2}
    assert (from_atoms(atoms).charge, from_atoms(atoms).spin) == (-1.0, 2)


def test_dummy_atoms_of_ase_are_refused() -> None:
    with pytest.raises(InvalidStructure, match="dummy"):
        from_atoms(Atoms("HX", positions=np.zeros((2, 3))))


def test_ase_atoms_are_copied() -> None:
    atoms = crystal()
    found = from_atoms(atoms)
    atoms.positions += 1.0
    atoms.cell[0, 0] = 9.0
    assert not np.allclose(found.positions, atoms.positions)
    assert found.cell[0, 0] != 9.0


finite = st.floats(-1e6, 1e6)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.integers(1, 8).flatmap(
        lambda count: st.builds(
            Structure,
            arrays(np.int32, count, elements=st.integers(1, 118)),
            arrays(np.float64, (count, 3), elements=finite),
            arrays(np.float64, (3, 3), elements=finite),
            arrays(np.bool_, 3),
            st.sampled_from([0.0, 1.0, -2.0]),
            st.integers(0, 7),
        )
    )
)
@pytest.mark.parametrize(
    "there_and_back", [lambda s: from_mapping(to_mapping(s)), lambda s: from_atoms(s.to_atoms())], ids=["JSON", "ASE"]
)
def test_round_trips(there_and_back: Callable[[Structure], Structure], structure: Structure) -> None:
    if there_and_back(structure).cell.shape == (3, 3) and not structure.cell.any():
        structure = Structure(structure.numbers, structure.positions, structure.cell, structure.pbc)
    found = there_and_back(structure)
    for name in ("numbers", "positions", "cell", "pbc"):
        np.testing.assert_array_equal(getattr(found, name), getattr(structure, name))
        assert getattr(found, name).dtype == getattr(structure, name).dtype
    assert (found.charge, found.spin) == (structure.charge, structure.spin)
