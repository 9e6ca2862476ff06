"""The one Triton Python model behind every variant: ``model_repository/<variant>/1/model.py`` imports it from here."""

from __future__ import annotations

import contextlib
import json
import locale
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils  # provided by Triton's stub

from forcefields import catalogue
from forcefields.runtime import arithmetic, calibration, device_neighbours, gate, loading, memory, tracing, transport
from forcefields.runtime.batch import Job
from forcefields.runtime.engine import Engine, Report
from forcefields.runtime.journal import Journal
from forcefields.runtime.metrics import Metrics, Teller
from forcefields.runtime.settings import ModelSettings, keep_out_of_home
from forcefields.runtime.watchdog import Watchdog
from forcegate import contract, jsonlog, tensors
from forcegate.errors import Cancelled, ForcegateError, ModelNotReady

log = logging.getLogger(__name__)

ASK_AFTER = 0.05
"""s. Requests that have waited for so long may have been cancelled. To ask costs a tenth of a millisecond for each."""


class TritonPythonModel:
    """Loads one variant, passes its gate, then evaluates the batches that Triton gathers."""

    _last_seconds = 0.0
    """Of the last call: for about as long the requests of this one have waited."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called by Triton once per instance. A model that raises here is not served, and the text is its reason."""
        started = time.perf_counter()
        _read_texts_as_utf8()
        name = args["model_name"]
        self._settings = ModelSettings.from_environment()
        jsonlog.configure(self._settings.log_level, process="model", model=name)
        keep_out_of_home(self._settings.state)
        _exit_with_parent()
        try:
            self._load(name, args, started)
        except ForcegateError as error:
            self._fail(name, error)
        except Exception as error:
            log.exception("the model could not be loaded")
            self._fail(
                name, ModelNotReady(f"{name} could not be loaded: {type(error).__name__}: {str(error)[:300]}", "See its log.")
            )

    def _load(self, name: str, args: dict[str, str], started: float) -> None:
        families = catalogue.load()
        config = json.loads(args["model_config"])
        # A user may have asked for another dtype than the variant's own, by a configuration that came with the load.
        self._variant = variant = families.resolve(name).with_dtype(config["parameters"]["dtype"]["string_value"])
        _agrees(config, variant)
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        checkpoint = Path(args["model_repository"]) / args["model_version"] / variant.checkpoint.file
        force_field = loading.load(families, variant, checkpoint, device)
        limits = loading.limits(variant, self._settings.max_atoms, self._settings.memory_gb)
        watchdog = Watchdog(self._settings.watchdog_seconds)
        # On a CPU a second thread would take the GIL and a core from the evaluation that it runs beside.
        lists = device_neighbours.chosen(self._settings, force_field, device)
        self._engine = engine = Engine(force_field, variant, limits, watchdog=watchdog.watch, ahead=device != "cpu", lists=lists)
        family = families.family_of(variant)
        how = arithmetic.chosen(self._settings, family, type(force_field), device)
        report = gate.pass_or_raise(engine, family, device, self._settings)
        found = calibration.calibrated(engine, device, *gate.memory_of_calibration(self._settings, variant, family, device))
        engine.size, engine.limits = found.size, replace(limits, edges=found.cost.edges)
        # From here on: a process that somebody kills during its gate says nothing against the gate's structures.
        engine.journal = Journal(self._settings.state / "journal" / name)
        self._specs = {spec.name: spec for spec in contract.output_specs(variant.extra_outputs)}
        self._memory = memory.Memory(self._settings.state / "memory" / f"{name}.json", device)
        self._teller = Teller((Metrics(name, pb_utils).observe, self._memory.observe), _note)
        self._spans = (
            tracing.Spans(self._settings.traces, name, device, self._settings.traces_ca) if self._settings.traces else None
        )
        transport.carrier()  # now rather than in the first request: it may have to import its library
        seconds = time.perf_counter() - started
        gate.write_report(self._settings.state, variant, device, seconds, report, found.cost, how)
        log.info("model ready", extra={"device": device, "seconds": round(seconds, 2), "limit_edges": engine.limits.edges})

    def _fail(self, name: str, error: ForcegateError) -> None:
        gate.write_failure(self._settings.state, name, error)
        log.error("model refused", extra={"code": error.code, "detail": error.detail})
        raise pb_utils.TritonModelException(error.to_wire())

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by Triton with the requests of one batch; every request gets its own response or its own error."""
        started = time.time_ns()
        read = [self._read(request) for request in requests]
        jobs = [job for _width, request_jobs, _error in read for job in request_jobs]
        self._memory.begin()
        report = self._engine.run(jobs)
        report.peak_mb = self._memory.peak_mb()
        responses = [
            self._respond(request, width, request_jobs, error)
            for request, (width, request_jobs, error) in zip(requests, read, strict=True)
        ]
        self._last_seconds = report.seconds
        if self._spans is not None:
            self._spans.tell([(request, of_one) for request, (_, of_one, _) in zip(requests, read, strict=True)], report, started)
        self._teller.tell(report, [request.request_id() for request in requests])
        return responses

    def finalize(self) -> None:
        """Called by Triton before the process ends."""
        self._teller.close()
        if self._spans is not None:
            self._spans.close()
        log.info("model unloaded")

    def _read(self, request: Any) -> tuple[int, list[Job], Any]:
        """The padded width, the jobs, and an error where there is nothing to evaluate."""
        if self._last_seconds > ASK_AFTER and request.is_cancelled():
            return 0, [], pb_utils.TritonError("cancelled by the client", pb_utils.TritonError.CANCELLED)
        try:
            arrays = transport.read_inputs(request, pb_utils)
            head = json.loads(request.parameters() or "{}").get(contract.HEAD_PARAMETER, "")
            outputs = frozenset(request.requested_output_names()) or frozenset(self._specs)
            request_id = request.request_id()
            gone = request.is_cancelled
            jobs = [Job(structure, str(head), outputs, request_id, abandoned=gone) for structure in tensors.unpack(arrays)]
            return arrays["numbers"].shape[1], jobs, None
        except Exception as error:
            log.warning("request not readable", exc_info=error)
            return 0, [], pb_utils.TritonError(f"invalid_request: The tensors could not be read: {error}")

    def _respond(self, request: Any, width: int, jobs: list[Job], error: Any) -> Any:
        if error is None:
            failed = next((k for k, job in enumerate(jobs) if job.error is not None), None)
            if failed is not None:
                cause = jobs[failed].error
                assert cause is not None
                if len(jobs) > 1:
                    cause = type(cause)(f"Structure {failed} of {len(jobs)} in this request: {cause.detail}", cause.hint)
                error = pb_utils.TritonError(cause.to_wire(), _triton_code(cause))
        if error is not None:
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        names = request.requested_output_names() or list(self._specs)
        specs = [self._specs[name] for name in names]
        return pb_utils.InferenceResponse(transport.write_outputs(jobs, width, specs, pb_utils))


def _note(report: Report, request_ids: Sequence[str]) -> None:
    """The log line of one call."""
    log.info(
        "batch",
        extra={
            "request_ids": request_ids,
            "structures": report.structures,
            "atoms": report.atoms,
            "edges": report.edges,
            "passes": report.tally.passes,
            "rejected": report.rejected,
            "seconds": round(report.seconds, 5),
        },
    )


def _triton_code(error: ForcegateError) -> Any:
    # The enum itself: given a plain int, the constructor of TritonError raises, and the whole batch fails with it.
    codes = pb_utils.TritonError
    if isinstance(error, Cancelled):
        return codes.CANCELLED
    return codes.UNAVAILABLE if error.retryable else codes.INVALID_ARG


def _agrees(config: dict[str, Any], variant: catalogue.Variant) -> None:
    """Refuses a configuration made for another checkpoint or another contract: clients read provenance from it."""
    parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
    for key, expected in (("checkpoint_sha256", variant.checkpoint.sha256), ("contract_version", str(contract.VERSION))):
        if parameters.get(key) != expected:
            raise ModelNotReady(
                f"config.pbtxt of {variant.name} says {key} {parameters.get(key)!r}, the catalogue says {expected!r}.",
                "Run `python -m exporters.repository`.",
            )


def _read_texts_as_utf8() -> None:
    """Triton's stub starts Python in the C locale, whatever the environment says, so that packages would read files as ASCII."""
    with contextlib.suppress(locale.Error):  # a system without it
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")


def _exit_with_parent() -> None:
    """Ends this process when its server has died: a killed tritonserver would leave it holding memory for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
