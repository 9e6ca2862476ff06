"""Every setting of the service, in one place.

A value comes from, in this order: an argument of the command, an environment variable ``FORCEGATE_<NAME>``, the file
``forcegate.toml`` in the working directory (or the one that ``FORCEGATE_CONFIG`` names), the default here.
``docs/settings.md`` is generated from this module.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from forcegate.errors import SetupError

PREFIX = "FORCEGATE_"


class Settings(BaseSettings):
    """The settings; each field's description is its documentation."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the gateway (REST).")
    gateways: int = Field(
        1,
        ge=0,
        le=64,
        description="Gateway processes that share the port; each is good for one core (docs/operations.md). 0 where they run "
        "elsewhere, by `forcegate gateway`.",
    )
    triton_host: str = Field("127.0.0.1", description="Where gateways and workers find Triton.")
    internal_host: str = Field(
        "127.0.0.1",
        description="Address that Triton's gRPC and metrics, and the metrics of workers, listen on. Another than loopback belongs "
        "into a private network, and Triton's needs `tritonserver`.",
    )
    tritonserver: str = Field(
        "",
        description="Folder of the tritonserver to use, with `bin/` and `backends/`, such as `/opt/tritonserver` in NVIDIA's "
        "image; empty for the embedded one.",
    )
    grpc_port: int = Field(8001, ge=1, le=65535, description="Port of Triton's gRPC.")
    metrics_port: int = Field(8002, ge=1, le=65535, description="Port of Triton's Prometheus metrics.")
    http_port: int = Field(8003, ge=1, le=65535, description="Port of Triton's HTTP, on loopback.")
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("sevennet-0", "chgnet-0.3.0"),
        description="Models loaded at start: names or aliases, separated by commas; `NAME:float64` for one that is "
        "to be evaluated in another dtype than its own.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run: `cpu`, `cuda`, or `auto` for CUDA where Triton finds a GPU."
    )
    threads: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)), ge=1, description="Threads of each model process (OMP_NUM_THREADS)."
    )
    root: Path = Field(
        default_factory=lambda: Path() if Path("model_repository").is_dir() else Path(__file__).parents[1],
        description="Folder of the repository: `environments/` and `model_repository/` are below it.",
    )
    state: Path = Field(Path("var"), description="Folder for logs, reports and other state.")
    families: str = Field("", description="Further folders with families of your own, separated by colons.")
    gate: Literal["full", "cached"] = Field(
        "cached",
        description="`full` runs every readiness check on each load; `cached` runs them once for the same checkpoint, code, "
        "packages and device, and the golden structures on each load.",
    )
    deadline_seconds: float = Field(60.0, gt=0, description="Time within which a REST request is answered, retries included.")
    sync_seconds: float = Field(
        300.0,
        gt=0,
        description="Time that POST /api/v1/optimization and the other calculations of the queue wait for their answer; after it "
        "they answer 504 with the id of the task, which goes on.",
    )
    watchdog_seconds: float = Field(
        60.0,
        gt=0,
        description="A forward pass of up to 256 atoms that takes longer is taken for hung; larger ones get more in proportion.",
    )
    heartbeat_seconds: float = Field(
        10.0,
        ge=0,
        description="A loaded model that has answered nobody for so long is asked for a known energy; 0 for no heartbeat.",
    )
    heartbeat_dead_seconds: float = Field(
        30.0, gt=0, description="A model that computes nothing and gives no good answer for so long is ended and loaded again."
    )
    max_in_flight: int = Field(
        2048, ge=1, description="Structures that all gateways together hold at once; beyond it they answer 429."
    )
    max_queue_seconds: float = Field(
        60.0,
        gt=0,
        description="Estimated seconds of work that may be held for one model, for single structures and for batches each; "
        "beyond it answers 429.",
    )
    max_body_mb: int = Field(64, ge=1, description="Longest request body, in MB.")
    max_batch: int = Field(1024, ge=1, description="Structures that one REST `batch` may hold.")
    max_atoms: int = Field(50_000, ge=1, description="Atoms that one structure may have, whatever the model's memory allows.")
    memory_gb: float = Field(
        0.0, ge=0, description="Memory that one model's evaluation may take, in GB; 0 is half of what is free at load."
    )
    workers: int = Field(1, ge=0, description="Worker processes for tasks that `forcegate serve` starts; 0 for none.")
    worker_metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of a worker's Prometheus metrics; 0 for none. Further workers of `forcegate serve` take the next ports.",
    )
    task_concurrency: int = Field(
        32, ge=1, description="Tasks that a worker carries out at once; their force calls meet in Triton's batches."
    )
    database_url: str = Field(
        "",
        description="Database of the tasks: `postgresql://user@host/name`; empty for SQLite in the state folder, on one machine.",
    )
    task_poll_seconds: float = Field(0.1, gt=0, description="How often a worker looks for a task that it can start.")
    task_state_seconds: float = Field(5.0, ge=0, description="Shortest time between two states that are kept of one calculation.")
    task_beat_seconds: float = Field(10.0, gt=0, description="How often a worker shows the others that it lives.")
    task_lease_seconds: float = Field(
        30.0, gt=0, description="A worker that has not been seen for so long is taken for dead: others go on with its tasks."
    )
    task_patience_seconds: float = Field(
        600.0, ge=0, description="How long a task waits for a model that is not there, without a step, before it fails."
    )
    task_retention_days: float = Field(30.0, gt=0, description="Finished tasks and their files are removed after so long.")
    max_tasks_per_user: int = Field(1000, ge=1, description="Unfinished tasks that one user may have; beyond it answers 429.")
    max_structures_per_user: int = Field(
        1000, ge=1, description="Uploaded structures that one user may have; beyond it answers 429."
    )
    max_structures_mb_per_user: int = Field(
        256, ge=1, description="MB of the database that one user's uploaded structures may take; beyond it answers 429."
    )
    structure_retention_days: float = Field(
        30.0, gt=0, description="Uploaded structures are removed so long after their last upload."
    )
    callback_private: bool = Field(
        False, description="Whether a task's callback may go to loopback, private and other addresses that are not public."
    )
    keys: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether requests need an API key (docs/security.md): `auto` where the gateway listens beyond loopback, which "
        "it does not do without.",
    )
    key_requests_per_second: float = Field(
        100.0,
        ge=0,
        description="Requests a second that one API key may send, and twice as many at once; beyond it answers 429; 0 is no limit.",
    )
    key_structures: int = Field(
        1024, ge=0, description="Structures that one API key may have in flight; beyond it answers 429; 0 is no limit."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins whose pages may use the gateway from a browser (CORS), separated by commas; none by default.",
    )
    tls_certificate: str = Field("", description="PEM file of a certificate with its chain: the gateway then speaks HTTPS alone.")
    tls_key: str = Field("", description="PEM file of that certificate's private key.")
    triton_key: str = Field(
        "",
        repr=False,
        description="Key of Triton's APIs that load models, map shared memory, trace and log; empty for a new one at each start.",
    )
    grpc_server_certificate: str = Field("", description="PEM file of a certificate: Triton's gRPC then speaks TLS alone.")
    grpc_server_key: str = Field("", description="PEM file of that certificate's private key.")
    grpc_ca: str = Field("", description="PEM file of the certificates that the gRPC certificates are signed with.")
    grpc_client_certificate: str = Field("", description="PEM file of the certificate that gRPC clients show, the gateway too.")
    grpc_client_key: str = Field("", description="PEM file of that certificate's private key.")
    grpc_mutual: bool = Field(False, description="Whether Triton's gRPC asks its clients for a certificate (mutual TLS).")
    metrics_open: bool = Field(False, description="Whether /metrics can be read without a key, where others need one.")
    scheduler: Literal["off", "on"] = Field(
        "off",
        description="`on` loads a model when it is first asked for and unloads the least recently used where memory is short "
        "(docs/scheduler.md); `models` are then loaded at the start as far as there is room.",
    )
    scheduler_memory_gb: float = Field(
        0.0, ge=0, description="Memory that all models together may hold on a CPU, in GB of 2^30 bytes; 0 is all but 2,000 MB."
    )
    scheduler_pinned: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Models that the scheduler never unloads, separated by commas."
    )
    scheduler_idle_seconds: float = Field(3600.0, gt=0, description="A model that nobody has used for so long is unloaded.")
    scheduler_models_per_device: int = Field(
        0, ge=0, description="Models that may be on one device at once; 0 is 16 for a CPU and 2 for a GPU."
    )
    scheduler_profile: str = Field(
        "",
        description="Placement profile whose rules hold from the start, by its name or the path of a .yaml (docs/scheduler.md); "
        "its idle time and its models on a device take the place of the two settings above.",
    )
    scheduler_replicas: int = Field(
        1,
        ge=1,
        description="Instances that the scheduler may give one model while work waits for it and there is memory; 1 adds none. "
        "Each takes the memory of the model once more. It pays where one instance leaves cores, or another GPU, unused.",
    )
    scheduler_replica_wait_seconds: float = Field(2.0, gt=0, description="A model gets one more when work waits for longer ...")
    scheduler_replica_sustained_seconds: float = Field(10.0, ge=0, description="... and has done so for this long.")
    scheduler_replica_idle_seconds: float = Field(
        300.0, gt=0, description="One goes again when hardly anything has waited, and half of them had nothing to do, for so long."
    )
    scheduler_load_seconds: float = Field(600.0, gt=0, description="A load that takes longer is given up.")
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest",
        description="How a GPU multiplies float32 matrices: `highest` in float32, so that answers do not depend on the card; "
        "`high` and `medium` let it round factors to TensorFloat-32 or less. The gate is run again after a change. "
        "A CPU always computes as `highest`.",
    )
    cuequivariance: Literal["off", "auto", "on"] = Field(
        "off",
        description="NVIDIA's cuEquivariance for MACE and SevenNet on a GPU: `auto` where it is installed, `on` refuses to load "
        "without it. What to install is in `forcefields/<family>/accelerated.txt`.",
    )
    compile: Literal["off", "on"] = Field(
        "off",
        description="`on` has torch.compile make one program of the network of models that take it (docs/tuning.md), when they are "
        "loaded, which takes a minute or more the first time; a model that cannot be compiled is then not loaded.",
    )
    neighbours: Literal["cpu", "device"] = Field(
        "cpu",
        description="Where the neighbour lists of models on a GPU are made: `device` has the GPU make them, which has not been run "
        "yet. On a CPU it changes nothing.",
    )
    traces: str = Field(
        "",
        description="OpenTelemetry collector that traces are sent to by OTLP over HTTP, such as `http://127.0.0.1:4318` "
        "(docs/monitoring.md); empty for none. An address without a path gets `/v1/traces`.",
    )
    traces_ca: str = Field(
        "",
        description="PEM file of the certificates that the collector's is signed with, where its address is `https://`; empty for "
        "those that this machine trusts, which are the only ones that Triton's own spans know.",
    )
    traces_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Part of the requests that is traced, of those whose caller has not decided it by a `traceparent` header.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log lines that are written.")
    log_to: Literal["files", "stderr"] = Field(
        "files",
        description="Where the processes of `forcegate serve` write their logs: `files` in the state folder, or its own `stderr`, "
        "for containers.",
    )
    drain_seconds: float = Field(30.0, ge=0, description="Time that requests in flight get to finish when the service stops.")

    @field_validator("models", "scheduler_pinned", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("traces")
    @classmethod
    def _collector(cls, value: str) -> str:
        if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            raise ValueError("it has to be an address such as http://127.0.0.1:4318")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = Path(os.environ.get(PREFIX + "CONFIG", "forcegate.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)

    @property
    def structures_per_gateway(self) -> int:
        """Structures that one gateway holds at most: its share, but never less than one full batch where all may hold that."""
        return max(self.max_in_flight // max(self.gateways, 1), min(self.max_in_flight, self.max_batch))

    def export_tls(self) -> None:
        """Checks the files of certificates, and puts those for gRPC's clients where ``forcegate.connection`` looks for them: in the
        environment of this process.

        Raises:
            SetupError: files that belong together are not all there.
        """
        server, client = (self.grpc_server_certificate, self.grpc_server_key), (self.grpc_client_certificate, self.grpc_client_key)
        if any(bool(one) != bool(other) for one, other in (server, client)):
            raise SetupError("A certificate for gRPC is set without its key, or a key without its certificate.", "Set both.")
        if (any(server) or any(client) or self.grpc_mutual) and not self.grpc_ca:
            raise SetupError(
                "gRPC is to use TLS, and FORCEGATE_GRPC_CA is not set.", "Name the file that its certificates are signed with."
            )
        if self.grpc_mutual and not (all(server) and all(client)):
            raise SetupError("Mutual TLS needs certificates and keys of both sides.", "See FORCEGATE_GRPC_CLIENT_CERTIFICATE.")
        if self.traces_ca and urlsplit(self.traces).scheme != "https":
            raise SetupError("FORCEGATE_TRACES_CA is set, and FORCEGATE_TRACES is no https:// address.", "Set both, or neither.")
        for path in (*server, *client, self.grpc_ca, self.traces_ca):
            if path and not os.access(path, os.R_OK):
                raise SetupError(f"{path} cannot be read.", "It has to be a PEM file.")
        for name in ("grpc_ca", "grpc_client_certificate", "grpc_client_key"):
            os.environ[PREFIX + name.upper()] = getattr(self, name)

    def as_environment(self) -> dict[str, str]:
        """The environment variables that mean these settings."""
        values = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in self.model_dump().items()}
        return {PREFIX + name.upper(): value for name, value in values.items()}

    @property
    def traces_url(self) -> str:
        """Where spans are POSTed to; empty for nowhere."""
        if not self.traces or urlsplit(self.traces).path.strip("/"):
            return self.traces
        return urlsplit(self.traces)._replace(path="/v1/traces").geturl()

    @property
    def grpc_address(self) -> str:
        """Where Triton's gRPC is."""
        return f"[{self.triton_host}]:{self.grpc_port}" if ":" in self.triton_host else f"{self.triton_host}:{self.grpc_port}"

    @property
    def repository(self) -> Path:
        """Folder that Triton loads models from."""
        return self.root / "model_repository"

    @property
    def environments(self) -> Path:
        """Folder of the execution environments."""
        return self.root / "environments"


def load(**overrides: object) -> Settings:
    """The settings, with ``overrides`` (those that are not None) before all else.

    Raises:
        SetupError: a value is unknown or malformed; the message names it and where it came from.
    """
    named = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**named)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (it is {e['input']!r})" for e in error.errors()]
        raise SetupError("A setting does not fit: " + "; ".join(lines) + ".", "docs/settings.md lists all of them.") from None
    except ValueError as error:  # a file that is not TOML
        raise SetupError(f"The settings file cannot be read: {error}.", "It has to be TOML.") from None
