"""The catalogue of families: what is read, what is refused, and how names are found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.repository import format_elements
from forcefields import catalogue
from forcefields.catalogue import Catalogue, parse_elements
from forcegate import contract
from forcegate.errors import UnknownModel, UnsupportedDtype

KNOWN = catalogue.load()


def family_toml(folder: Path, name: str, variants: str, about: str = "") -> None:
    """Writes a family with these variants."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "family.toml").write_text(
        f'[family]\nname = "{name}"\ntitle = "T"\npackage = "numpy"\nversion = "1"\nlicence = "MIT"\n{about}\n'
        '[defaults]\nsummary = ""\nfunctional = "PBE"\ntraining_data = ""\naliases = []\nelements = "18"\ncutoff = 5.0\n' + variants
    )


def variant(name: str, aliases: str = "[]", further: str = "") -> str:
    """The entry of one variant."""
    return (
        f'[[variant]]\nname = "{name}"\naliases = {aliases}\n{further}\n'
        f'[variant.checkpoint]\nfile = "f"\nsha256 = "{"0" * 64}"\nsource = "family"\npath = "f"\n'
    )


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("sevennet", "sevennet-0"),
        ("7net-0", "sevennet-0"),
        ("chgnet", "chgnet-0.3.0"),
        ("sevennet-l3i5", "sevennet-l3i5"),
        ("lennard-jones", "lj-argon"),
    ],
)
def test_names_and_aliases(alias: str, name: str) -> None:
    assert KNOWN.resolve(alias).name == name


@pytest.mark.parametrize("name", ["sevennet-0-22may2024", "sevennet-l3i5", "sevennet-mf-0", "chgnet-0.2.0", "chgnet-r2scan"])
def test_the_variants_with_weights_in_their_packages(name: str) -> None:
    found = KNOWN.resolve(name)
    assert found.checkpoint.source == "package"
    assert len(found.checkpoint.sha256) == 64


@pytest.mark.parametrize(
    ("name", "near"), [("sevenet-0", "sevennet-0"), ("chgnet-3.0", "chgnet-0.3.0"), ("CHGNET", ""), ("", ""), ("x" * 999, "")]
)
def test_unknown_names_are_told_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        KNOWN.resolve(name)
    assert near in caught.value.hint
    assert "GET /api/v1/models" in caught.value.hint
    assert len(caught.value.detail) < 120


def test_hidden_variants_are_not_proposed(tmp_path: Path) -> None:
    family_toml(tmp_path, "a", variant("tiny-abc", further="hidden = true") + variant("other"))
    with pytest.raises(UnknownModel) as caught:
        catalogue.load([tmp_path]).resolve("tiny-ab")
    assert "tiny-abc" not in caught.value.hint
    assert catalogue.load([tmp_path]).resolve("tiny-abc").hidden


def test_every_variant_is_consistent() -> None:
    for found in KNOWN.variants.values():
        assert found.elements, found.name
        assert set(found.elements) <= set(range(1, 119)), found.name
        assert found.cutoff > 0
        assert found.default_head in (found.heads or ("",)), found.name
        assert bool(found.default_head) == bool(found.heads), found.name
        assert set(found.head_functionals) <= set(found.heads), found.name
        contract.output_specs(found.extra_outputs)
        assert found.functional
        assert found.dtype in ("float32", "float64")
        family = KNOWN.family_of(found)
        assert found in family.variants
        assert family.requirements.is_file(), f"{family.name} has no pinned requirements"
        if found.checkpoint.sha256:
            assert len(found.checkpoint.sha256) == 64
            assert int(found.checkpoint.sha256, 16)


def test_chgnet_was_not_trained_on_what_mptrj_lacks() -> None:
    """Po, At, Rn, Fr and Ra have random weights in every model of MPtrj."""
    for name in ("chgnet-0.3.0", "sevennet-0", "sevennet-mf-0"):
        assert not {84, 85, 86, 87, 88} & set(KNOWN.resolve(name).elements)


def test_functionals_of_heads() -> None:
    found = KNOWN.resolve("sevennet-mf-0")
    assert (found.functional_of("PBE"), found.functional_of("R2SCAN")) == ("PBE(+U)", "r2SCAN")
    assert KNOWN.resolve("chgnet").functional_of("") == "PBE(+U)"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (variant("same"), variant("same")),
        (variant("one", '["x"]'), variant("two", '["x"]')),
        (variant("one", '["two"]'), variant("two")),
        (variant("one"), variant("two", '["one"]')),
    ],
)
def test_two_variants_cannot_claim_one_name(first: str, second: str, tmp_path: Path) -> None:
    family_toml(tmp_path, "a", first + second)
    with pytest.raises(ValueError, match="claims the name"):
        catalogue.load([tmp_path])


def test_two_families_cannot_claim_one_name(tmp_path: Path) -> None:
    """Otherwise a folder of FORCEGATE_FAMILIES could replace a family, and its variants would vanish without a word."""
    family_toml(tmp_path / "one", "chgnet", variant("mine"))
    with pytest.raises(ValueError, match=r"family 'chgnet' already"):
        catalogue.load([catalogue.HERE, tmp_path / "one"])


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ("", "variant"),
        ('[[variant]]\nname = "x"\n', "checkpoint"),
        (variant("x", further="colour = 3"), "colour"),
        (variant("x", further="gate = { forces = 1.0, moments = 2.0 }"), "moments"),
    ],
)
def test_malformed_files_name_the_file(variants: str, words: str, tmp_path: Path) -> None:
    family_toml(tmp_path, "broken", variants)
    with pytest.raises(ValueError, match=words) as caught:
        catalogue.load([tmp_path])
    assert "broken/family.toml" in str(caught.value)


def test_families_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family_toml(tmp_path, "mine", variant("my-model", '["mine"]'))
    monkeypatch.setenv(catalogue.EXTRA_FAMILIES, str(tmp_path))
    found = catalogue.load()
    assert found.resolve("mine").name == "my-model"
    assert found.resolve("chgnet").name == "chgnet-0.3.0"


def test_an_empty_catalogue_says_so() -> None:
    with pytest.raises(UnknownModel):
        Catalogue({}).resolve("chgnet")


@given(st.sets(st.integers(1, 118), min_size=1))
def test_elements_round_trip(numbers: set[int]) -> None:
    assert parse_elements(format_elements(tuple(sorted(numbers)))) == tuple(sorted(numbers))


@pytest.mark.parametrize(("text", "numbers"), [("18", (18,)), ("1-3", (1, 2, 3)), ("5, 1-2,2", (1, 2, 5))])
def test_elements(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_elements(text) == numbers


def test_a_model_is_chosen_with_its_dtype() -> None:
    assert KNOWN.chosen("mace-mp").dtype == "float32"
    assert (KNOWN.chosen("mace-mp:float64").name, KNOWN.chosen("mace-mp:float64").dtype) == ("mace-mp-0-medium", "float64")
    assert KNOWN.chosen("mace-omol-0:float32").dtype == "float32", "the other one of a model that is served in float64"
    for setting in ("sevennet-0:float64", "mace-mp:float16", "mace-mp:", "allscaip:float64"):
        with pytest.raises(UnsupportedDtype, match=r"It has: float32"):
            KNOWN.chosen(setting)
    with pytest.raises(UnknownModel):
        KNOWN.chosen("mace-mpp:float64")


def test_a_default_dtype_has_to_be_among_those_that_can_be_chosen(tmp_path: Path) -> None:
    family_toml(tmp_path, "a", variant("a-1", further='dtype = "float64"\ndtypes = ["float32"]'))
    with pytest.raises(ValueError, match="float64"):
        catalogue.load([tmp_path])
    family_toml(tmp_path, "a", variant("a-1", further='dtype = "float64"'))
    assert catalogue.load([tmp_path]).variants["a-1"].dtypes == ("float64",)
