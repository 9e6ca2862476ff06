"""The commands of docker compose behind ``forcegate deploy``, each as the list of its words."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from forcegate.errors import SetupError

PROFILES = ("cpu", "gpu1", "gpu8", "test")
PARTS = ("monitoring", "postgres")
ENVIRONMENT = ".env.production"


@dataclass(frozen=True)
class Deployment:
    """One choice of compose files.

    Args:
        root: folder of the repository.
        profile: one of ``PROFILES``.
        parts: of ``PARTS``, those that are wanted too.
    """

    root: Path
    profile: str
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise SetupError(f"There is no profile {self.profile[:80]!r}.", f"Known are {', '.join(PROFILES)}.")
        if missing := [path for path in self.files if not path.is_file()]:
            raise SetupError(f"There is no {missing[0]}.", "Run it in a clone of the repository, or set FORCEGATE_ROOT.")

    @property
    def files(self) -> list[Path]:
        """The compose files, in the order in which later ones override earlier ones."""
        names = ["", f".{self.profile}", *(f".{part}" for part in PARTS if part in self.parts)]
        return [self.root / "docker" / f"compose{name}.yaml" for name in names]

    @property
    def compose(self) -> list[str]:
        """How every command begins."""
        words = ["docker", "compose"]
        if (self.root / ENVIRONMENT).is_file():
            words += ["--env-file", str(self.root / ENVIRONMENT)]
        for path in self.files:
            words += ["--file", str(path)]
        return words + (["--profile", "gpu"] if self.profile.startswith("gpu") else [])

    def build(self) -> list[list[str]]:
        """Builds the images."""
        return [[*self.compose, "--profile", "export", "build"]]

    def up(self) -> list[list[str]]:
        """Puts the models in place, then starts everything and waits until all of it is healthy."""
        return [self.export(()), [*self.compose, "up", "--detach", "--wait", "--wait-timeout", "900"]]

    def export(self, models: Sequence[str]) -> list[str]:
        """Runs the export job, for the models of the profile where none is named."""
        return [*self.compose, "--profile", "export", "run", "--rm", "export", *(["export", *models] if models else [])]

    def key(self, words: Sequence[str]) -> list[list[str]]:
        """Makes an API key in the service's database; the gateway, which needs one, need not run yet."""
        database = [[*self.compose, "up", "--detach", "--wait", "postgres"]] if "postgres" in self.parts else []
        return [*database, [*self.compose, "run", "--rm", "--no-deps", "worker", "keys", "create", *words]]

    def down(self) -> list[list[str]]:
        """Stops everything; volumes stay."""
        return [[*self.compose, "down", "--remove-orphans"]]

    def restart(self, service: str) -> list[list[str]]:
        """Restarts one service or all."""
        return [[*self.compose, "restart", *([service] if service else [])]]

    def logs(self, service: str, follow: bool) -> list[list[str]]:
        """The end of the logs."""
        return [[*self.compose, "logs", "--tail", "200", *(["--follow"] if follow else []), *([service] if service else [])]]

    def scale(self, workers: int) -> list[list[str]]:
        """Runs so many workers; the others have one port or one GPU, and cannot be doubled."""
        return [[*self.compose, "up", "--detach", "--no-recreate", "--scale", f"worker={workers}", "worker"]]

    def clean(self) -> list[list[str]]:
        """Stops everything and removes its volumes: models, tasks, keys."""
        return [[*self.compose, "--profile", "export", "down", "--remove-orphans", "--volumes"]]

    def status(self) -> list[str]:
        """Tells of every container, one JSON object a line."""
        return [*self.compose, "ps", "--all", "--format", "json"]

    def ask_gateway(self) -> list[str]:
        """What the service says of itself, asked from inside, where no key is needed."""
        ask = (
            "import sys,urllib.request as u; sys.stdout.write(u.urlopen('http://127.0.0.1:8000/health', timeout=5).read().decode())"
        )
        return [*self.compose, "exec", "-T", "gateway", "/opt/forcegate/environments/gateway/bin/python", "-c", ask]


def make_secrets(folder: Path, parts: Sequence[str]) -> list[Path]:
    """Writes the passwords that a deployment needs and that are not there yet; returns what was written.

    The containers read them under other users, so the files are open to all and their folder to its owner alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    written = []
    password = folder / "postgres_password"
    if "postgres" in parts and not password.exists():
        written.append(_write(password, secrets.token_urlsafe(32)))
    if "postgres" in parts and not (address := folder / "database_url").exists():
        written.append(_write(address, f"postgresql://forcegate:{quote(password.read_text())}@postgres/forcegate"))
    if "monitoring" in parts and not (grafana := folder / "grafana_password").exists():
        written.append(_write(grafana, secrets.token_urlsafe(24)))
    return written


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o644)
    return path
