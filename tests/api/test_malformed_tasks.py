"""Bodies of tasks that are not what they should be, over REST: the same 4xx where the answer is waited for and where it is queued.

tests/unit/tasks/test_malformed.py spoils every place of every body; here a few of each show that the service answers as it decides.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.service import RunningService
from tests.unit.tasks.test_malformed import ABSURD, BODIES

SPOILED: list[tuple[dict[str, Any], int, str]] = [
    ({"atoms": None}, 400, "invalid_request"),
    ({"options": {"priority": "SOON"}}, 400, "invalid_request"),
    ({"options": 7}, 400, "invalid_request"),
    ({"dispersion": [1]}, 400, "invalid_request"),
    ({"use_d3": "yes"}, 400, "invalid_request"),
]


def test_every_kind_refuses_in_both_forms(service: RunningService) -> None:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        before = client.get("/api/v1/tasks").json()["total"]

        def refused(kind: str, body: dict[str, Any], status: int, code: str | None = None) -> None:
            forms = [f"tasks/{kind}"] if kind == "single-point" else [f"tasks/{kind}", kind.replace("-", "_")]
            for form in forms:
                answer = client.post(f"/api/v1/{form}", json=body)
                assert answer.status_code == status, (form, answer.text)
                assert {"detail", "code", "retryable", "hint"} <= set(answer.json())
                assert code in (None, answer.json()["code"]), (form, answer.text)

        for kind, body in BODIES.items():
            body = body | {"options": {}}
            for changes, status, code in SPOILED:
                if kind in ("batch", "multi-model") and not {"atoms", "options"} & set(changes):
                    changes = {"task_params": body["task_params"] | changes}
                refused(kind, body | changes, status, code)
            if kind != "multi-model":
                refused(kind, body | {"model_name": "nobody"}, 404, "unknown_model")
            for answer in (client.post(f"/api/v1/tasks/{kind}", content=text) for text in (b"", b"[]", b"{", b"\xff\xfe")):
                assert answer.status_code == 400, answer.text
        for kind, changes, status in ABSURD:
            if kind != "batch" and "nan" not in str(changes):  # the service takes larger batches, and httpx writes no NaN
                refused(kind, BODIES[kind] | {"options": {}} | changes, status)
        assert client.get("/api/v1/tasks").json()["total"] == before
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("path", ["tasks/alchemy", "tasks/bulk_modulus/x/y", "alchemy"])
def test_kinds_that_do_not_exist(service: RunningService, path: str) -> None:
    answer = httpx.post(f"{service.url}/api/v1/{path}", json=BODIES["bulk-modulus"], timeout=60)
    assert answer.status_code in (404, 405), answer.text
