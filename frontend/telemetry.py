"""What the gateway tells about itself: Prometheus metrics, and one JSON line per event with the request's id.

No structure, no position and no file text ever goes into a log line.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import prometheus_client
from prometheus_client import CollectorRegistry, Info, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

import forcegate
from forcegate import jsonlog
from frontend.scheduler.metrics import SchedulerMetrics, State
from frontend.tasks.metrics import TaskMetrics

if TYPE_CHECKING:
    from frontend.security.keys import Key
    from frontend.tracing import Trace

REQUEST_ID: ContextVar[str] = ContextVar("forcegate_request_id", default="")
"""Id of the request that the running task works for; every log line takes it from here."""

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable that names the folder where several gateways count together; prometheus_client reads it when it is imported."""

UNMATCHED = "unmatched"
"""Route label of requests to paths that do not exist: raw paths would make as many time series as there are typing errors."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_STRUCTURES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Kept:
    """A metric that finds its time series by their labels in one look; the library's own search takes longer than what follows it.

    Nothing is ever taken out of a metric here, so what was found once stays right.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._found: dict[tuple[str, ...], Any] = {}
        super().__init__(*args, **options)

    def labels(self, *values: str) -> Any:
        """The series with these labels, in the order of their names."""
        if (series := self._found.get(values)) is None:
            series = self._found[values] = super().labels(*values)  # type: ignore[misc]
        return series


class Counter(_Kept, prometheus_client.Counter):  # type: ignore[misc]
    """Only grows."""


class Gauge(_Kept, prometheus_client.Gauge):  # type: ignore[misc]
    """Goes up and down."""


class Histogram(_Kept, prometheus_client.Histogram):  # type: ignore[misc]
    """Counts by size."""


def request_id(given: str | None) -> str:
    """The caller's id where it is sane (letters, digits, ``. _ : -``, at most 128), else a new one."""
    if given and _SANE_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex


@dataclass(slots=True)
class Call:
    """What is known of one HTTP request while it is answered; the access log and the metrics are written from it.

    Attributes:
        request_id: goes to the model's log line, the answer's body and its ``X-Request-ID`` header.
        started: ``time.perf_counter()`` at arrival.
        accept: the Accept header.
        limit: seconds that the request may take.
        deadline: ``time.monotonic()`` until which an answer is worth sending.
        model: canonical name, or empty where no single known model was meant.
        route: path template, where it is known without the framework.
        structures, atoms: the size of the work.
        code: code of the error that was answered, if any.
        gone: the caller went away before the answer.
        key: the API key of the request; None where none is needed.
        trace: its spans; None where it is not traced.
    """

    request_id: str
    started: float
    accept: str = ""
    limit: float = float("inf")
    deadline: float = float("inf")
    model: str = ""
    route: str = ""
    structures: int = 0
    atoms: int = 0
    code: str = ""
    gone: bool = False
    key: Key | None = None
    trace: Trace | None = None

    def allow(self, seconds: float) -> None:
        """Sets the deadline, ``seconds`` after arrival."""
        self.limit = seconds
        self.deadline = time.monotonic() + seconds - self.seconds

    @property
    def seconds(self) -> float:
        """Seconds since the request came in."""
        return time.perf_counter() - self.started

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


@dataclass
class Metrics:
    """The gateway's metrics, in a registry of their own so that several applications can live in one process."""

    scheduler: State = lambda: None
    """What the owner of the residents told last."""
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        registry = self.registry
        registry.register(SchedulerMetrics(self.scheduler))
        # Where several gateways count, what one process has is told for all: numbers add up. Seconds of work do not: each gateway's
        # own are corrected by what it gets of the model, and so are the time until its work is done.
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        _tell_build(registry)
        self.seconds = Histogram(
            "forcegate_request_seconds",
            "Time from a request's first byte to its answer.",
            ("route", "model"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.requests = Counter("forcegate_requests", "Requests answered.", ("route", "method", "status"), registry=registry)
        self.rejected = Counter(
            "forcegate_gateway_rejected", "Requests and structures answered with an error.", ("code",), registry=registry
        )
        self.requests_in_flight = Gauge(
            "forcegate_requests_in_flight", "Requests being answered.", registry=registry, multiprocess_mode="livesum"
        )
        self.structures_in_flight = Gauge(
            "forcegate_structures_in_flight", "Structures being evaluated.", registry=registry, multiprocess_mode="livesum"
        )
        self.batch = Histogram(
            "forcegate_gateway_structures", "Structures per request.", ("route",), buckets=_STRUCTURES, registry=registry
        )
        self.evaluation = Histogram(
            "forcegate_gateway_evaluation_seconds",
            "Time that one request took in Triton, its queue and retries included.",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_structures = Gauge(
            "forcegate_queue_structures",
            "Structures that wait in the gateway.",
            ("model", "class"),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queue_seconds = Gauge(
            "forcegate_queue_seconds",
            "Estimated seconds of work that waits in the gateway.",
            ("model", "class"),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.queue_wait = Histogram(
            "forcegate_queue_wait_seconds",
            "Time that a request to a model waited in the gateway.",
            ("class",),
            buckets=(0.0, *_SECONDS),
            registry=registry,
        )
        for kind in ("interactive", "bulk"):
            self.queue_wait.labels(kind)  # a count whose first value is 1 has increased for nobody
        self.cost_correction = Gauge(
            "forcegate_cost_correction",
            "Observed over estimated seconds of work.",
            ("model",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.refused = Counter("forcegate_refused", "Work that was not taken on, by reason.", ("reason",), registry=registry)
        self.retries = Counter("forcegate_retries", "Evaluations sent again.", ("model", "code"), registry=registry)
        self.tasks = TaskMetrics(registry)
        self.state_free = Gauge(
            "forcegate_state_free_bytes",
            "Free bytes of the disk that has the state folder.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.state_size = Gauge(
            "forcegate_state_bytes", "Size of that disk in bytes.", registry=registry, multiprocess_mode="livemax"
        )
        self.model_ready = Gauge(
            "forcegate_model_ready", "1 for a model that answers.", ("model",), registry=registry, multiprocess_mode="livemax"
        )

    def exposition(self) -> bytes:
        """The Prometheus text; of all gateways where there are several, whichever of them is asked."""
        if METRICS_FOLDER not in os.environ:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        _tell_build(registry)
        MultiProcessCollector(registry)
        registry.register(SchedulerMetrics(self.scheduler))
        return generate_latest(registry)


def configure_logging(level: str, number: str = "") -> None:
    """Sends every logger's lines, uvicorn's too, to standard error as JSON with the id of the request that they belong to.

    Args:
        number: of this gateway, where there are several.
    """
    constant = {"process": "gateway", "gateway": number} if number else {"process": "gateway"}
    jsonlog.configure(level, None, _encode, **constant)
    # None of these is written, and each is looked up for every line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for handler in logging.getLogger().handlers:
        handler.addFilter(_add_request_id)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _tell_build(registry: CollectorRegistry) -> None:
    build = Info("forcegate_build", "Version of the gateway.", registry=registry)
    build.info({"version": forcegate.__version__, "python": platform.python_version()})


def _add_request_id(record: logging.LogRecord) -> bool:
    if identifier := REQUEST_ID.get():
        record.request_id = identifier
    return True


def _encode(entry: dict[str, Any]) -> str:
    try:
        return orjson.dumps(entry, default=str).decode()
    except TypeError:  # texts that are no Unicode, keys that are no texts
        return jsonlog.plain(entry)
