"""What can be served: the ``family.toml`` of every family, read into typed records.

Standard library alone, since the gateway, the exporters and every execution environment read it.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from forcegate.errors import SetupError, UnknownModel, UnsupportedDtype

HERE = Path(__file__).parent
EXTRA_FAMILIES = "FORCEGATE_FAMILIES"
"""Environment variable: further folders that hold family folders, separated by ``os.pathsep``."""
STATE = "FORCEGATE_STATE"
"""Environment variable: the state folder, ``var`` where it is not set."""
RECORD = "checkpoints.json"
"""File in the state folder: hashes that were recorded here, by variant."""
EXPORTS = "exports.json"
"""File in the state folder: users' own checkpoints, by the name that they gave them."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a variant's weights come from, and the only bytes that are accepted.

    Attributes:
        file: name of the file, or folder, in ``<repository>/<variant>/1/``.
        source: ``package`` (``path`` inside the installed module ``module``), ``family`` (``path`` inside the family folder),
            ``download`` (from ``url``), ``tiny`` (made by the family's ``tiny.py``, ``path`` names the kind) or ``own`` (given to
            ``forcegate export --file``; the only copy is the one in place).
        sha256: hash of its bytes. Empty in ``family.toml`` where nobody publishes one: it is recorded when the checkpoint is first
            put in place, and enforced from then on.
        url: where to fetch it. ``https://host/{one,two}`` stands for several files that make up a folder; an archive is unpacked
            where ``file`` is none, and ``path`` then names the file or folder in it.
        recorded: whether ``sha256`` is such a recorded one, or of a user's own checkpoint: it holds for this state folder alone.
    """

    file: str
    source: str
    sha256: str = ""
    path: str = ""
    module: str = ""
    url: str = ""
    recorded: bool = False


@dataclass(frozen=True)
class Gate:
    """Tolerances of the readiness gate, and the checks that a model is known not to satisfy, each with its reason."""

    energy: float = 1e-5
    forces: float = 1e-2
    stress: float = 5e-4
    invariance_energy: float = 1e-5
    invariance_forces: float = 1e-4
    invariance_stress: float = 1e-5
    skip: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Packing:
    """How much one forward pass takes on the CPU: it closes at ``atoms`` atoms; ``bytes_per_edge`` bounds the largest structure."""

    atoms: int = 128
    bytes_per_edge: int = 50_000


@dataclass(frozen=True)
class Variant:
    """One served model: one checkpoint of one family.

    ``elements`` holds atomic numbers; ``heads`` is empty for a model with a single head; ``dispersion`` is the policy word of
    ``family.toml`` (``none``, ``allowed``, ``recommended``, ``included``, ``forbidden``).
    """

    name: str
    family: str
    aliases: tuple[str, ...]
    summary: str
    functional: str
    training_data: str
    elements: tuple[int, ...]
    checkpoint: Checkpoint
    cutoff: float
    heads: tuple[str, ...] = ()
    default_head: str = ""
    head_functionals: Mapping[str, str] = field(default_factory=dict)
    extra_outputs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the family's adapter alone understands: for a checkpoint that does not hold its own architecture."""
    dtype: str = "float32"
    dtypes: tuple[str, ...] = ()
    """What ``with_dtype`` takes: the floating-point types that the adapter evaluates this checkpoint in."""
    direct_forces: bool = False
    uses_charge: bool = False
    uses_spin: bool = False
    charge_heads: tuple[str, ...] = ()
    """The heads that use charge and spin, of a model that does so with some of its heads alone; with all of them when empty."""
    partly_periodic: bool = True
    """Whether structures are taken that are periodic in one or two directions, such as slabs: a model with interactions of infinite
    range cannot hear the vacuum that a slab is given."""
    dispersion: str = "none"
    head_dispersion: Mapping[str, str] = field(default_factory=dict)
    """The policy word of heads for which ``dispersion`` does not hold."""
    licence: str = ""
    consent: str = ""
    """A licence that has to be accepted before the checkpoint is fetched: non-commercial or gated."""
    token: bool = False
    """Whether the hub gives the checkpoint only to an account."""
    hidden: bool = False
    gate: Gate = field(default_factory=Gate)
    packing: Packing = field(default_factory=Packing)

    def with_dtype(self, dtype: str) -> Variant:
        """The same variant, evaluated in ``dtype``.

        Raises:
            UnsupportedDtype: it cannot be; the hint names what it can be evaluated in.
        """
        if dtype not in self.dtypes:
            raise UnsupportedDtype(
                f"The model {self.name!r} cannot be evaluated in {dtype[:20]!r}.", f"It has: {', '.join(self.dtypes)}."
            )
        return replace(self, dtype=dtype)

    def functional_of(self, head: str) -> str:
        """The functional that ``head`` was trained on; the variant's own where it has no heads."""
        return self.head_functionals.get(head, self.functional)

    def dispersion_of(self, head: str) -> str:
        """The dispersion policy of ``head``; the variant's own where it has no heads."""
        return self.head_dispersion.get(head, self.dispersion)

    def knows_charge(self, head: str) -> bool:
        """Whether the total charge makes a difference to ``head``."""
        return self.uses_charge and (not self.charge_heads or head in self.charge_heads)

    def knows_spin(self, head: str) -> bool:
        """Whether the spin multiplicity makes a difference to ``head``."""
        return self.uses_spin and (not self.charge_heads or head in self.charge_heads)

    def elements_outside(self, numbers: Iterable[int]) -> list[int]:
        """Those atomic numbers, sorted, that the model was not trained on."""
        return sorted(set(numbers) - set(self.elements))


@dataclass(frozen=True)
class Family:
    """One package with its execution environment and its variants.

    ``environment`` is the folder below ``environments/``: the family's own name, unless it shares another family's.
    """

    name: str
    title: str
    package: str
    version: str
    licence: str
    reference: str
    folder: Path
    environment: str
    variants: tuple[Variant, ...]
    retired: Mapping[str, str] = field(default_factory=dict)
    """Names that users may still type and whose weights are gone, with the reason and the successor."""

    @property
    def requirements(self) -> Path:
        """The pinned requirements of this family's execution environment."""
        return self.folder / "requirements.txt"

    @property
    def golden(self) -> Path:
        """The energies and forces recorded when the variants were exported."""
        return self.folder / "golden.json"


@dataclass(frozen=True)
class Catalogue:
    """All families."""

    families: Mapping[str, Family]

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """Every variant by its canonical name."""
        return {variant.name: variant for family in self.families.values() for variant in family.variants}

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Canonical name by alias."""
        return {alias: variant.name for variant in self.variants.values() for alias in variant.aliases}

    def resolve(self, name: str) -> Variant:
        """The variant of that name or alias.

        Raises:
            UnknownModel: there is none; the detail names the nearest ones.
        """
        if (variant := self.variants.get(self.aliases.get(name, name))) is not None:
            return variant
        for family in self.families.values():
            if name in family.retired:
                raise UnknownModel(f"The model {name!r} is not served any more: {family.retired[name]}")
        from difflib import get_close_matches

        shown = [n for n in (*self.variants, *self.aliases) if not self.variants[self.aliases.get(n, n)].hidden]
        near = get_close_matches(name, shown, n=3, cutoff=0.4)
        raise UnknownModel(
            f"There is no model {name[:60]!r}.",
            (f"Did you mean {' or '.join(near)}? " if near else "") + UnknownModel.default_hint,
        )

    def chosen(self, model: str) -> Variant:
        """The variant that a setting such as ``mace-mp-0-medium`` or ``mace-mp-0-medium:float64`` names, with that dtype.

        Raises:
            UnknownModel: there is none.
            UnsupportedDtype: it cannot be evaluated in this dtype.
        """
        name, colon, dtype = model.partition(":")
        variant = self.resolve(name)
        return variant.with_dtype(dtype) if colon else variant

    def family_of(self, variant: Variant) -> Family:
        """The family that serves ``variant``."""
        return self.families[variant.family]


def load(folders: Iterable[Path] | None = None) -> Catalogue:
    """Reads every ``<folder>/<family>/family.toml``.

    Args:
        folders: where to look; the families of this repository and of ``FORCEGATE_FAMILIES`` when not given, with the hashes that
            were recorded in the folder ``FORCEGATE_STATE`` and the users' own checkpoints that were exported there.

    Raises:
        ValueError: a file is malformed, or two families or variants claim one name.
        SetupError: an own checkpoint has a name that a family claims by now.
    """
    if folders is None:
        state = Path(os.environ.get(STATE, "var"))
        return _cached(os.environ.get(EXTRA_FAMILIES, ""), state, _version(state / RECORD), _version(state / EXPORTS))
    families: dict[str, Family] = {}
    names: dict[str, str] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/family.toml")):
            family = _family(path)
            if family.name in families:
                raise ValueError(f"{path}: there is a family {family.name!r} already, in {families[family.name].folder}")
            families[family.name] = family
            for variant in family.variants:
                for name in (variant.name, *variant.aliases):
                    if name in names:
                        raise ValueError(f"{path}: {variant.name} claims the name {name!r}, which {names[name]} already has")
                    names[name] = variant.name
    return Catalogue(families)


@lru_cache
def _cached(extra: str, state: Path, record: tuple[int, int], exports: tuple[int, int]) -> Catalogue:
    found = load([HERE, *(Path(entry) for entry in extra.split(os.pathsep) if entry)])
    hashes: dict[str, str] = json.loads((state / RECORD).read_text()) if any(record) else {}
    recorded = Catalogue({name: _with_recorded(family, hashes) for name, family in found.families.items()})
    return _with_exports(recorded, json.loads((state / EXPORTS).read_text())) if any(exports) else recorded


def _version(path: Path) -> tuple[int, int]:
    """Another one whenever the file was written: it is always replaced as a whole."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino


def _with_recorded(family: Family, hashes: Mapping[str, str]) -> Family:
    return replace(
        family,
        variants=tuple(
            replace(variant, checkpoint=replace(variant.checkpoint, sha256=hashes[variant.name], recorded=True))
            if not variant.checkpoint.sha256 and variant.name in hashes
            else variant
            for variant in family.variants
        ),
    )


def _with_exports(catalogue: Catalogue, exports: Mapping[str, Mapping[str, Any]]) -> Catalogue:
    families = dict(catalogue.families)
    for name, entry in exports.items():
        if name in catalogue.variants or name in catalogue.aliases:
            raise SetupError(
                f"Your own checkpoint {name!r} has a name that {catalogue.resolve(name).family} claims by now.",
                f"Run `forcegate export --remove {name}`, and export it again under another name.",
            )
        # One of a family that is not known here, such as one outside FORCEGATE_FAMILIES, cannot be served.
        if (family := families.get(entry["family"])) is not None:
            variant = variant_from(family.name, {"name": name, **entry["variant"]})
            families[family.name] = replace(family, variants=(*family.variants, variant))
    return Catalogue(families)


def _family(path: Path) -> Family:
    data = tomllib.loads(path.read_text())
    about, defaults = data["family"], data.get("defaults", {})
    try:
        return Family(
            name=about["name"],
            title=about["title"],
            package=about["package"],
            version=about["version"],
            licence=about["licence"],
            reference=about.get("reference", ""),
            folder=path.parent,
            environment=about.get("environment", about["name"]),
            variants=tuple(variant_from(about["name"], defaults | entry) for entry in data["variant"]),
            retired=data.get("retired", {}),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def variant_from(family: str, entry: Mapping[str, Any]) -> Variant:
    """The variant that an entry of ``family.toml``, with the family's defaults in it, describes."""
    entry = dict(entry)
    entry["elements"] = parse_elements(entry["elements"])
    entry["checkpoint"] = Checkpoint(**entry["checkpoint"])
    entry["gate"] = Gate(**entry.get("gate", {}))
    entry["packing"] = Packing(**entry.get("packing", {}))
    for name in ("aliases", "heads", "extra_outputs", "charge_heads", "dtypes"):
        entry[name] = tuple(entry.get(name, ()))
    variant = Variant(family=family, **entry)
    if not variant.dtypes:
        return replace(variant, dtypes=(variant.dtype,))
    if variant.dtype not in variant.dtypes:
        raise ValueError(f"{variant.name}: its dtype {variant.dtype} is not among its dtypes {', '.join(variant.dtypes)}")
    return variant


def parse_elements(text: str) -> tuple[int, ...]:
    """Atomic numbers from ranges such as ``"1-83,89-94"``."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))
