"""Bodies -> typed records."""

from __future__ import annotations

import msgpack
import numpy as np
import orjson
import pytest

from forcegate import arrays
from forcegate.errors import (
    InvalidRequest,
    InvalidStructure,
    StructureTooLarge,
)
from forcegate.structure import Structure
from frontend.requests import Batch, Limits, MultiModel, SinglePoint, decode, load_dtype

LIMITS = Limits(max_batch=4, max_atoms=1000)
ARGON = {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}
BODY = {"model_name": "lj-argon", "atoms": ARGON}


def single(body: object) -> SinglePoint:
    record = decode("single_point", orjson.dumps(body), "json", LIMITS)
    assert isinstance(record, SinglePoint)
    return record


def test_defaults_and_unknown_fields() -> None:
    record = single(BODY | {"colour": "blue", "atoms": ARGON | {"tags": [1, 2]}})
    assert (record.model, record.options.forces, record.options.stress, record.options.head) == ("lj-argon", True, True, "")
    np.testing.assert_array_equal(record.structure.numbers, [18, 18])


def test_msgpack_says_the_same_as_json() -> None:
    record = decode("single_point", msgpack.packb(BODY), "msgpack", LIMITS)
    assert isinstance(record, SinglePoint)
    np.testing.assert_array_equal(record.structure.positions, single(BODY).structure.positions)


ARRAY = {b"nd": True, b"type": "<f8", b"kind": b"", b"shape": [2, 3], b"data": bytes(40) + np.float64(3.8).tobytes()}
"""The positions of ``ARGON`` as msgpack-numpy writes them."""


def packed(**change: object) -> bytes:
    return msgpack.packb(BODY | {"atoms": {"symbols": ["Ar", "Ar"], "positions": ARRAY} | change})


def test_arrays_as_bytes_say_the_same_as_lists() -> None:
    texts = {key.decode(): value for key, value in ARRAY.items()}
    edges = arrays.packed(np.diag([5.0, 6.0, 7.0]))
    for form in (packed(), packed(positions=texts), packed(positions=arrays.packed(np.array(ARGON["positions"], dtype=float)))):
        record = decode("single_point", form, "msgpack", LIMITS)
        assert isinstance(record, SinglePoint)
        np.testing.assert_array_equal(record.structure.positions, single(BODY).structure.positions)
    numbers = {"symbols": None, "numbers": arrays.packed(np.array([18, 18], dtype=np.int32))}
    periodic = {"cell": edges, "pbc": arrays.packed(np.array([True, True, False]))}
    record = decode("single_point", packed(**numbers, **periodic), "msgpack", LIMITS)
    assert isinstance(record, SinglePoint)
    np.testing.assert_array_equal(record.structure.numbers, [18, 18])
    np.testing.assert_array_equal(record.structure.cell, np.diag([5.0, 6.0, 7.0]))
    np.testing.assert_array_equal(record.structure.pbc, [True, True, False])


@pytest.mark.parametrize(
    "change",
    [
        {b"kind": b"O", b"type": "|O", b"data": b"cos\nsystem\n(S'true'\ntR."},  # what msgpack-numpy would unpickle
        {b"type": "|O"},
        {b"type": "<U8"},
        {b"type": ">f8"},
        {b"type": [["a", "<f8"]], b"kind": b"V"},
        {b"type": None},
        {b"shape": [3, 3]},
        {b"shape": [6]},
        {b"shape": [-2, -3]},
        {b"shape": [0, 2**62], b"data": b""},
        {b"shape": [1, 2, 3]},
        {b"shape": []},
        {b"shape": [2.0, 3.0]},
        {b"shape": 6},
        {b"data": bytes(47)},
        {b"data": "text"},
        {b"data": [0.0] * 6},
        {b"nd": False},
        {b"type": "|b1", b"data": bytes(6)},
    ],
)
def test_an_array_that_is_not_one_is_refused_as_a_structure(change: dict[bytes, object]) -> None:
    with pytest.raises(InvalidStructure):
        decode("single_point", packed(positions=ARRAY | change), "msgpack", LIMITS)


@pytest.mark.parametrize("name", ["numbers", "symbols", "charge", "spin", "pbc"])
def test_an_array_of_floats_in_a_wrong_place_is_refused(name: str) -> None:
    with pytest.raises(InvalidStructure):
        decode("single_point", packed(**{name: ARRAY}), "msgpack", LIMITS)


def test_an_array_has_the_same_limits_as_a_list() -> None:
    with pytest.raises(StructureTooLarge):
        decode("single_point", packed(positions=arrays.packed(np.zeros((1001, 3)))), "msgpack", LIMITS)


def test_a_null_and_a_bare_nan_both_reach_the_model_as_nan() -> None:
    for literal in (b"null", b"NaN"):
        body = b'{"model_name": "m", "atoms": {"symbols": ["Ar"], "positions": [[0, 0, %s]]}}' % literal
        record = decode("single_point", body, "json", LIMITS)
        assert isinstance(record, SinglePoint)
        assert np.isnan(record.structure.positions[0, 2])


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": None},
        {"model_name": 5},
        {"atoms": None},
        {"compute_forces": 1},
        {"compute_stress": None},
        {"head": 3},
        {"use_d3": "yes"},
        {"dispersion": "d4"},
        {"dispersion": [1]},
    ],
)
def test_a_known_field_of_a_wrong_type_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        single(BODY | change)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": [["0", "0", "0"], ["0", "0", "3"]]},  # numpy would take the texts for numbers
        {"positions": [[True, False, 1.0], [0, 0, 3.8]]},  # and true for 1
        {"positions": [[0, 0, 0]]},
        {"positions": [0, 0, 0, 0, 0, 3.8]},
        {"symbols": "ArAr"},
        {"symbols": ["Ar", "ar"]},
        {"symbols": ["Ar", "X"]},  # ASE's dummy atom has number 0, which is padding: it would vanish
        {"numbers": [18]},
        {"numbers": "18, 18"},
        {"numbers": [18, True]},
        {"cell": "cubic"},
        {"cell": [[1, 0, 0], [0, 1, 0]]},
        {"cell": [1, "2", 3]},
        {"pbc": [True, True]},
        {"pbc": "yes"},
        {"charge": "1"},
        {"spin": 1.5},
        {"spin": -1},
        {"info": []},
    ],
)
def test_atoms_of_a_wrong_shape_or_type_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidStructure):
        single({"model_name": "m", "atoms": ARGON | change})


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"", "json"),
        (b"{", "json"),
        (b"\xff\xfe", "json"),
        (b"[" * 100_000, "json"),
        (b"[" * 100_000 + b"NaN", "json"),
        (b'"NaN" "\\ud800"', "json"),
        (b"[]", "json"),
        (b"null", "json"),
        (b"\x93\x01", "msgpack"),
        (b"\xc1", "msgpack"),
        (b"\x91" * 100_000, "msgpack"),
        (b"\xdf\xff\xff\xff\xff", "msgpack"),
        (b"\xa2\xff\xfe", "msgpack"),
        (b"\x01", "msgpack"),
    ],
)
def test_what_is_no_body_is_refused_with_words_that_can_be_written_out(body: bytes, media: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode("single_point", body, media, LIMITS)  # type: ignore[arg-type]
    assert caught.value.detail
    orjson.dumps(caught.value.as_dict())


def test_a_lone_surrogate_in_a_name_can_be_written_out_again() -> None:
    body = b'{"model_name": "\\ud800", "atoms": {"symbols": ["\\ud800"], "positions": [[0, 0, NaN]]}}'
    with pytest.raises(InvalidStructure) as caught:
        decode("single_point", body, "json", LIMITS)
    orjson.dumps(caught.value.as_dict())


@pytest.mark.parametrize("surrogate", [b"\\ud800", b"\xed\xa0\x80"], ids=["escaped", "raw"])
def test_lone_surrogates_in_names_of_models_and_heads_can_be_written_out_again(surrogate: bytes) -> None:
    body = (
        b'{"x": NaN, "model_names": ["a", "@"], "task_params": {"head": "@", "heads": {"@": "@"}}, '
        b'"atoms": {"symbols": ["Ar"], "positions": [[0, 0, 0]]}}'
    ).replace(b"@", surrogate)
    record = decode("multi_model", body, "json", LIMITS)
    assert isinstance(record, MultiModel)
    assert record.models[0] == "a"
    orjson.dumps([record.models, record.heads, record.options.head])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "auto"),
        ({"dispersion": None}, "auto"),
        ({"dispersion": "none"}, "none"),
        ({"dispersion": "d3bj"}, "d3bj"),
        ({"use_d3": True}, "d3bj"),
    ],
)
def test_use_d3_of_older_clients_is_d3bj(change: dict[str, object], expected: str) -> None:
    assert single(BODY | change).options.dispersion == expected


def test_dispersion_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="use_d3"):
        single(BODY | {"use_d3": True, "dispersion": "none"})


def test_too_many_atoms_are_refused_before_the_arrays_are_built() -> None:
    atoms = {"numbers": [18] * 1001, "positions": "not looked at"}
    with pytest.raises(StructureTooLarge, match="1001 atoms"):
        single({"model_name": "m", "atoms": atoms})


def test_in_a_batch_a_malformed_structure_fails_alone() -> None:
    body = {"model_name": "m", "atoms": [ARGON, {"symbols": ["Zz"], "positions": [[0, 0, 0]]}, 5]}
    record = decode("batch", orjson.dumps(body), "json", LIMITS)
    assert isinstance(record, Batch)
    assert isinstance(record.structures[0], Structure)
    assert all(isinstance(entry, InvalidStructure) for entry in record.structures[1:])


@pytest.mark.parametrize("atoms", [[], ARGON, "text", [ARGON] * 5])
def test_a_batch_needs_a_list_of_a_length_within_its_limit(atoms: object) -> None:
    with pytest.raises(InvalidRequest):
        decode("batch", orjson.dumps({"model_name": "m", "atoms": atoms}), "json", LIMITS)


def test_comparison() -> None:
    body = {"model_names": ["a", "b"], "atoms": ARGON, "task_params": {"heads": {"a": "x"}, "compute_stress": False}}
    record = decode("multi_model", orjson.dumps(body), "json", LIMITS)
    assert isinstance(record, MultiModel)
    assert (record.models, record.task, record.heads, record.align) == (("a", "b"), "single_point", {"a": "x"}, True)
    assert not record.options.stress


@pytest.mark.parametrize(
    "change",
    [
        {"model_names": "ab"},
        {"model_names": []},
        {"model_names": [1]},
        {"task": 4},
        {"task_params": 1},
        {"task_params": {"heads": {"a": 1}}},
    ],
)
def test_a_malformed_comparison_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        decode("multi_model", orjson.dumps({"model_names": ["a"], "atoms": ARGON} | change), "json", LIMITS)


def test_a_load_may_ask_for_a_dtype() -> None:
    assert [load_dtype(body, "json") for body in (b"", b"{}", b'{"dtype": null}', b'{"dtype": "float64", "x": 1}')] == [
        "",
        "",
        "",
        "float64",
    ]
    for body in (b"[]", b'{"dtype": 64}', b"{"):
        with pytest.raises(InvalidRequest):
            load_dtype(body, "json")
