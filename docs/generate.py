"""``python -m docs.generate``: the pages that follow from the code, so that they cannot say anything else.

docs/settings.md from frontend/settings.py, docs/models.md and the table in README.md from the catalogue, docs/errors.md from
forcegate/errors.py. With ``--check`` nothing is written, and the exit status is 1 where a file differs.
tests/unit/test_documents.py does the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from exporters.repository import format_elements
from forcefields import catalogue
from forcefields.catalogue import Catalogue, Family, Variant
from forcegate.errors import BY_CODE, ForcegateError
from frontend.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- models: begin, by python -m docs.generate -->", "<!-- models: end -->"

DEFAULTS = {"threads": "CPUs that the process may use", "root": "the repository"}
"""Defaults that depend on the machine, in words."""

ACTIONS = {
    "forcegate_error": "Look for the request id in the logs, and report it.",
    "invalid_structure": "The detail names the field or the line; the hint says what it should be.",
    "unknown_head": "Choose one of the heads that the hint names.",
    "unsupported_output": "Ask for outputs that the model has; GET /api/v1/models lists them.",
    "dispersion_not_supported": 'Send `"dispersion": "none"`, or leave it out.',
    "not_found": "GET /docs lists the pages.",
    "method_not_allowed": "Use a method that the Allow header names.",
    "checkpoint_missing": "Run `make serve` again: it puts the file in place.",
    "checkpoint_mismatch": "Remove the file that the detail names and run `make serve` again.",
    "gate_failed": "Do not use the model on this machine. The detail names the checks; report them.",
    "model_not_ready": "Wait a few seconds, or load the model with POST /api/v1/models/NAME/load.",
    "setup_error": "The sentence says what to change.",
}
"""What to do about errors whose class has no hint of its own, since the hint depends on the case."""


OTHERS = (
    (
        "`FORCEGATE_URL`",
        "Where `forcegate models`, `compare` and `forcegate.Client` find the gateway; `http://127.0.0.1:8000` when not set.",
    ),
    (
        "`FORCEGATE_GRPC`",
        "Where `forcegate evaluate` and `ForcegateCalculator` find Triton's gRPC, `host:port`; `127.0.0.1:8001` when not set.",
    ),
    (
        "`UV_FIND_LINKS`",
        "Where uv looks for wheels besides the package index, such as for a CPU build of torch; else `PIP_FIND_LINKS`.",
    ),
)
"""Variables that are no settings of the service."""


def pages() -> dict[Path, str]:
    """Every generated file and its text; README.md with its table replaced."""
    families = catalogue.load([catalogue.HERE])
    readme = ROOT / "README.md"
    return {
        ROOT / "docs" / "settings.md": settings(),
        ROOT / "docs" / "models.md": models(families),
        ROOT / "docs" / "errors.md": errors(),
        readme: with_models(readme.read_text(), families),
    }


def settings() -> str:
    """docs/settings.md."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = DEFAULTS.get(name) or _value(field.get_default(call_default_factory=True))
        rows.append((f"`{name}`", f"`{PREFIX}{name.upper()}`", default, field.description or ""))
    table = _table(("name", "environment variable", "default", "meaning"), rows)
    return SETTINGS.format(table=table, others=_table(("variable", "meaning"), OTHERS))


def models(families: Catalogue) -> str:
    """docs/models.md."""
    sections = [_section(family) for family in families.families.values() if any(not v.hidden for v in family.variants)]
    return MODELS + "\n".join(sections)


def errors() -> str:
    """docs/errors.md."""
    rows = []
    for code, kind in sorted(BY_CODE.items(), key=lambda item: (item[1].status, item[0])):
        meaning = "Anything else; the base of all errors." if kind is ForcegateError else (kind.__doc__ or "").strip()
        action = kind.default_hint or ACTIONS[code]
        rows.append((f"`{code}`", f"`{kind.__name__}`", str(kind.status), "yes" if kind.retryable else "no", meaning, action))
    return ERRORS.format(table=_table(("code", "Python type", "HTTP", "try again", "meaning", "what to do"), rows))


def with_models(readme: str, families: Catalogue) -> str:
    """README.md with the table of models between its two markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, opened, rest = readme.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (opened and closed):
        raise ValueError("README.md has lost the markers of its table of models")
    rows = [
        (f"`{v.name}`", v.functional, str(len(v.elements)), _outputs(v), v.licence, v.summary)
        for v in families.variants.values()
        if not v.hidden
    ]
    table = _table(("model", "functional", "elements", "gives", "licence", "what it is"), rows)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _section(family: Family) -> str:
    variants = [variant for variant in family.variants if not variant.hidden]
    about = (
        f"## {family.title}\n\nPackage `{family.package}` {family.version}, licence of the code: {family.licence}.\n"
        f"{family.reference}.\n"
    )
    head = ("model", "aliases", "functional", "training data", "heads", "outputs", "cutoff A", "dtype", "dispersion", "licence")
    rows = [
        (
            f"`{v.name}`",
            _codes(v.aliases),
            "; ".join(f"{h}: {v.functional_of(h)}" for h in v.heads) or v.functional,
            v.training_data,
            ", ".join(f"{h} (default)" if h == v.default_head else h for h in v.heads) or "one",
            _outputs(v),
            f"{v.cutoff:g}",
            v.dtype,
            v.dispersion,
            v.licence,
        )
        for v in variants
    ]
    weights = [(f"`{v.name}`", v.summary, f"{len(v.elements)}: {format_elements(v.elements)}", _hash(v)) for v in variants]
    return "\n".join(
        [about, _table(head, rows), "", _table(("model", "what it is", "elements", "sha256 of the checkpoint"), weights), ""]
    )


def _outputs(variant: Variant) -> str:
    return ", ".join(("energy", "forces", "stress", *variant.extra_outputs))


def _hash(variant: Variant) -> str:
    known = variant.checkpoint.sha256 and not variant.checkpoint.recorded
    return f"`{variant.checkpoint.sha256}`" if known else "recorded when it is first put in place"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return f"`{value}`" if str(value) else "none"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


SETTINGS = """\
# Settings

Generated from frontend/settings.py by `python -m docs.generate`.

A value comes from, in this order: an option of `forcegate serve` (`forcegate serve --help`), the environment variable, the file
`forcegate.toml` in the working directory (or the one that `FORCEGATE_CONFIG` names), the default.

{table}

The same as a file:

```toml
port = 8100
models = "sevennet-0,chgnet-0.3.0,sevennet-mf-0"
device = "cpu"
threads = 4
state = "/tmp/forcegate"
```

A name that is not in the table, or a value that does not fit, stops the start with one sentence.

Three further variables belong to the clients and to the building of environments:

{others}
"""

MODELS = """\
# Models

Generated from the `family.toml` of each family by `python -m docs.generate`. `GET /api/v1/models` says the same of a running
service, with the state of each model.

A checkpoint with other bytes than those of the table is never loaded. `dispersion` is what is known of the functional: `included`
in it, or `allowed` to be added to it; no correction is added yet.

"""

ERRORS = """\
# Errors

Generated from forcegate/errors.py by `python -m docs.generate`.

Every error is one of these, over REST as `{{"detail", "code", "retryable", "hint"}}` with the HTTP status, over gRPC as a message
that begins with the code, in Python as the type of `forcegate.errors`. `detail` says what is wrong, `hint` what to do. Where the
same call can succeed later, `retryable` is true; 429 and 503 then come with `Retry-After` in seconds, and the clients of this
project try again by themselves until their deadline. A structure of a batch that fails has its error in its place, and the others
have their results.

{table}
"""


def main(arguments: Sequence[str]) -> int:
    """Writes, or only compares, the pages; returns the exit status."""
    different = [path for path, text in pages().items() if not path.is_file() or path.read_text() != text]
    if "--check" in arguments:
        for path in different:
            print(f"{path.relative_to(ROOT)} is not what the code says: run python -m docs.generate", file=sys.stderr)  # noqa: T201
        return int(bool(different))
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
