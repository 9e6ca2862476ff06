"""``forcegate export``: from a name to a model that is ready to be loaded, whatever that takes.

Environment, consent to the licence, checkpoint, configuration, gate, golden energies, manifest: each step is skipped where it was
done before, so that an export that was interrupted goes on, and one with nothing to do is quick.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporters import checkpoints, consent, environments, family_python, own, prepare, records, versions
from exporters.download import Progress, Say
from exporters.lock import locked
from exporters.sources import Sources
from forcefields import catalogue as catalogues
from forcefields.catalogue import Catalogue, Family, Variant
from forcefields.runtime import gate, golden
from forcefields.runtime.settings import ModelSettings
from forcegate.errors import ForcegateError, GateFailed, SetupError

MANIFEST = "manifest.json"
"""File beside a checkpoint: what it is, where it came from and when, and how its gate went."""

EXPORTED, UP_TO_DATE, FAILED = "exported", "up to date", "failed"


@dataclass(frozen=True)
class Outcome:
    """What came of one model. ``size`` in bytes; ``checks`` are those of the gate, as in its report."""

    name: str
    status: str
    seconds: float
    sha256: str = ""
    size: int = 0
    checks: tuple[dict[str, Any], ...] = ()
    error: ForcegateError | None = None


@dataclass(frozen=True)
class Exporter:
    """Exports models.

    Attributes:
        root: the repository, with ``environments/`` and ``model_repository/`` below it.
        threads: of the gate's process: the gate that it passes is remembered for a service with as many.
        device: ``cpu``, ``auto`` or ``cuda``; the gate runs on the CPU unless it is ``cuda``.
        ask: asks for consent to a licence.
        brought: folder with files brought by hand; where it is given, no checkpoint is fetched.
    """

    root: Path
    state: Path
    threads: int
    device: str
    ask: consent.Ask
    say: Say
    progress: Progress = lambda _name, _done, _total: None
    brought: Path | None = None

    def export(self, names: Iterable[str]) -> list[Outcome]:
        """Exports each model; one that fails costs the others nothing.

        Raises:
            UnknownModel: a name is unknown; nothing is exported then.
        """
        catalogue = catalogues.load()
        wanted = list(dict.fromkeys(catalogue.resolve(name).name for name in names))
        prepare.adopt(catalogue, self.root, self.state)
        refused: dict[str, ForcegateError] = {}
        for name in wanted:  # every question first: whoever answers them can then go for a coffee
            try:
                consent.require(self.state, catalogue.resolve(name), self.ask)
            except SetupError as error:
                refused[name] = error
        return [self._outcome(name, lambda name=name: self._export(name), refused.get(name)) for name in wanted]  # type: ignore[misc]

    def export_own(self, given: own.OwnCheckpoint, replace: bool = False) -> Outcome:
        """Exports a user's own checkpoint. One that does not pass its gate is not kept.

        Args:
            replace: whether it may take the place of another of that name, which ``versions.put_back`` puts back.

        Raises:
            InvalidRequest: what the user says of it does not fit together.
        """
        catalogue = catalogues.load()
        family = own.family_of(catalogue, given)
        if not (replace and own.is_another(catalogue, given, self.state)):
            return self._outcome(given.name, lambda: self._export_own(family, given), None)

        def in_its_place() -> Outcome:
            with versions.replacing(given.name, self.state):
                return self._export_own(family, given)

        return self._outcome(given.name, in_its_place, None)

    def _outcome(self, name: str, work: Callable[[], Outcome], refused: ForcegateError | None) -> Outcome:
        started = time.monotonic()
        try:
            if refused is not None:
                raise refused
            return work()
        except ForcegateError as error:
            return Outcome(name, FAILED, time.monotonic() - started, error=error)

    def _export_own(self, family: Family, given: own.OwnCheckpoint) -> Outcome:
        self._environment(family)
        with self._locked(given.name):
            own.add(catalogues.load(), given, self.state, self.root / "environments", self._log)
        try:
            return self._export(given.name)
        except BaseException as error:
            if not (self.state / prepare.FOREIGN / given.name / "1" / MANIFEST).is_file():  # it has never passed
                own.remove(given.name, self.state)
            if isinstance(error, GateFailed) and not given.like:
                raise GateFailed(
                    error.detail, "A model with direct forces needs --like with the model that it was tuned from. Nothing was kept."
                ) from None
            raise

    def _export(self, name: str) -> Outcome:
        started = time.monotonic()
        catalogue = catalogues.load()
        variant = catalogue.resolve(name)
        built = self._environment(catalogue.family_of(variant))
        with self._locked(name):
            # Another export may have recorded its hash while this one waited.
            catalogue = catalogues.load()
            variant = catalogue.resolve(name)
            home = prepare.home(catalogue, variant, self.root, self.state)
            came_from, variant = self._place(catalogue, variant, home)
            prepare.write_repository(catalogues.load(), self.root, self.state, self.say)
            checks = self._passed_before(variant, catalogue.family_of(variant), home)
            done = checks is not None and not came_from and not built
            if checks is None:
                checks = self._judge(catalogue, variant, home, new=bool(came_from))
                self._write_manifest(catalogue, variant, home, came_from, checks)
        return Outcome(
            name=name,
            status=UP_TO_DATE if done else EXPORTED,
            seconds=time.monotonic() - started,
            sha256=variant.checkpoint.sha256,
            size=_size(checkpoints.location(home, variant)),
            checks=tuple(checks),
        )

    @property
    def _log(self) -> Path:
        return self.state / "logs" / "export.log"

    def _locked(self, name: str) -> Any:
        return locked(prepare.lock(self.state, name), self.say, f"{name}: another process is exporting it, waiting")

    def _environment(self, family: Family) -> bool:
        folders = {each.name: each.requirements for each in catalogues.load().families.values()}
        environment = environments.of_family(family, folders)
        built = environments.ensure(environment, self.root, self.say)
        environments.check(environment, self.root)
        return built

    def _place(self, catalogue: Catalogue, variant: Variant, home: Path) -> tuple[str, Variant]:
        """Where the checkpoint came from, and the variant with the hash that was recorded for it."""
        sources = Sources(catalogue, self.state / "downloads", self.brought, self.progress, self.say)
        came_from = checkpoints.place(catalogue, variant, home, self.root / "environments", self.state, sources.bring)
        sources.clean(variant)
        if came_from:
            self.say(f"{variant.name}: checkpoint in place, from {came_from}")
        return came_from, catalogues.load().resolve(variant.name)

    def _passed_before(self, variant: Variant, family: Family, home: Path) -> list[dict[str, Any]] | None:
        """The checks of the gate, where this very combination has passed them and everything is recorded."""
        manifest = records.read(home / variant.name / "1" / MANIFEST)
        if self.device == "cuda" or manifest.get("sha256") != variant.checkpoint.sha256:
            return None
        if manifest.get("package_version") != family.version or golden.recorded(family.golden, variant, self.state) is None:
            return None
        return gate.passed(variant, family, self.state, str(self.threads))

    def _judge(self, catalogue: Catalogue, variant: Variant, home: Path, new: bool) -> list[dict[str, Any]]:
        """Runs the gate in the family's environment; a checkpoint that cannot even be read is not kept if it has just come."""
        self.say(f"{variant.name}: running its gate")
        settings = ModelSettings(state=self.state.resolve())
        variables = settings.as_environment() | {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        device = "cuda:0" if self.device == "cuda" else "cpu"
        if device == "cpu":
            variables["CUDA_VISIBLE_DEVICES"] = ""
        path = checkpoints.location(home, variant).resolve()
        environment = catalogue.family_of(variant).environment
        try:
            told = family_python.ask(
                self.root / "environments",
                environment,
                "judge",
                variant.name,
                str(path),
                device,
                variables=variables,
                log=self._log,
            )
        except family_python.Unreadable as error:
            kept = "It was recorded before, and is kept."
            if new and variant.checkpoint.recorded:
                checkpoints.forget(variant, home, self.state)
                kept = "Nothing of it was kept."
            raise SetupError(f"The checkpoint of {variant.name} cannot be read: {error.detail} {kept}", "") from None
        if told["recorded"]:
            self.say(f"{variant.name}: golden energies recorded")
        checks: list[dict[str, Any]] = told["checks"]
        return checks

    def _write_manifest(
        self, catalogue: Catalogue, variant: Variant, home: Path, came_from: str, checks: list[dict[str, Any]]
    ) -> None:
        family, path = catalogue.family_of(variant), home / variant.name / "1" / MANIFEST
        before = records.read(path)
        same = before.get("sha256") == variant.checkpoint.sha256
        now = datetime.now(UTC).isoformat(timespec="seconds")
        records.write(
            path,
            {
                "model": variant.name,
                "family": family.name,
                "package": family.package,
                "package_version": family.version,
                "file": variant.checkpoint.file,
                "sha256": variant.checkpoint.sha256,
                "hash_from": "first export on this machine" if variant.checkpoint.recorded else "catalogue",
                "size": _size(checkpoints.location(home, variant)),
                "from": came_from or (before.get("from") if same else None) or _told(variant),
                "placed": before["placed"] if same and not came_from else now,
                "gate_passed": now,
                "functional": variant.functional,
                "licence": variant.licence,
                "consent": consent.given(self.state, variant),
                "gate": [{key: check[key] for key in ("name", "deviation", "tolerance", "unit", "note")} for check in checks],
            },
        )


def selection(catalogue: Catalogue, family: str = "") -> list[str]:
    """The models that are exported by default: those that users see, of one family where it is named.

    Raises:
        SetupError: there is no such family.
    """
    if family and family not in catalogue.families:
        raise SetupError(f"There is no family {family!r}.", f"There are {', '.join(sorted(catalogue.families))}.")
    return [v.name for v in catalogue.variants.values() if not v.hidden and family in ("", v.family)]


def _told(variant: Variant) -> str:
    """Where a checkpoint comes from that was in place before the first export."""
    checkpoint = variant.checkpoint
    return checkpoint.path if checkpoint.source == "own" else f"{checkpoint.source}: {checkpoint.url or checkpoint.path}"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
