"""Two dashboards for Grafana: the service, and models with GPUs. Each panel is a title, a unit, and queries with their legends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "grafana" / "dashboards"

Panel = tuple[str, str, tuple[tuple[str, str], ...]]

SERVICE: tuple[Panel, ...] = (
    ("Requests", "reqps", (("forcegate:requests:rate5m", "{{route}}"),)),
    ("Errors", "percentunit", (("forcegate:errors:ratio5m", "5xx"),)),
    ("Time of a request, p95", "s", (("forcegate:request_seconds:p95", "{{route}}"),)),
    ("Wait in the queue, p95", "s", (("forcegate:queue_wait_seconds:p95", "{{class}}"),)),
    ("Work that waits", "s", (("forcegate_queue_seconds", "{{model}} {{class}}"),)),
    ("In flight", "short", (("forcegate_requests_in_flight", "requests"), ("forcegate_structures_in_flight", "structures"))),
    ("Tasks", "short", (("forcegate_tasks_queued", "queued {{priority}}"), ("forcegate_tasks_running", "running"))),
    ("Workers", "short", (("forcegate_tasks_workers", "live"), ("forcegate_worker_tasks", "tasks of {{instance}}"))),
    ("Free disk of the state folder", "bytes", (("forcegate_state_free_bytes", "free"),)),
)
MODELS: tuple[Panel, ...] = (
    ("Ready", "short", (("forcegate_model_ready == 1", "{{model}}"),)),
    ("Structures a second", "short", (("sum by (model) (rate(nv_inference_count[5m]))", "{{model}}"),)),
    ("Structures in a batch, mean", "short", (("forcegate:batch:mean5m", "{{model}}"),)),
    ("Atoms a second", "short", (("sum by (model) (rate(forcegate_atoms[5m]))", "{{model}}"),)),
    ("Busy", "percentunit", (("sum by (model) (rate(forcegate_evaluation_seconds[5m]))", "{{model}}"),)),
    ("Instances", "short", (("sum by (model) (max by (model, device) (forcegate_scheduler_replicas))", "{{model}}"),)),
    ("Waiting in Triton", "short", (("nv_inference_pending_request_count", "{{model}}"),)),
    (
        "Out of memory, bisections",
        "short",
        (("rate(forcegate_out_of_memory[5m])", "memory {{model}}"), ("rate(forcegate_bisections[5m])", "bisected {{model}}")),
    ),
    ("GPU memory", "percentunit", (("forcegate:gpu_memory:ratio", "GPU {{gpu}}"),)),
    ("GPU use", "percent", (("DCGM_FI_DEV_GPU_UTIL", "GPU {{gpu}}"),)),
    ("GPU temperature", "celsius", (("DCGM_FI_DEV_GPU_TEMP", "GPU {{gpu}}"),)),
)
DASHBOARDS = {"service": ("Forcegate: service", SERVICE), "models": ("Forcegate: models and GPUs", MODELS)}


def files() -> dict[Path, str]:
    """The dashboards' JSON."""
    return {
        FOLDER / f"{name}.json": json.dumps(_dashboard(name, title, panels), indent=2) + "\n"
        for name, (title, panels) in DASHBOARDS.items()
    }


def queries() -> list[str]:
    """Every query of every panel."""
    return [query for _, panels in DASHBOARDS.values() for _, _, targets in panels for query, _ in targets]


def _dashboard(name: str, title: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    return {
        "uid": f"forcegate-{name}",
        "title": title,
        "tags": ["forcegate"],
        "timezone": "browser",
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": "now-3h", "to": "now"},
        "panels": [_panel(number, *panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, title: str, unit: str, targets: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "prometheus"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": number % 3 * 8, "y": number // 3 * 8, "w": 8, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + at), "datasource": source, "expr": query, "legendFormat": legend}
            for at, (query, legend) in enumerate(targets)
        ],
    }
