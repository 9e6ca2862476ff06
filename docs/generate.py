"""``python -m docs.generate``: the pages that follow from the code, so that they cannot say anything else.

docs/settings.md from frontend/settings.py, docs/models.md and the table in README.md from the catalogue, docs/errors.md from
forcegate/errors.py. With ``--check`` nothing is written, and the exit status is 1 where a file differs.
tests/unit/test_documents.py does the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from exporters.generated import bring_up_to_date
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
    "checkpoint_missing": "Run the command that the hint names: `forcegate export NAME` fetches weights, "
    "`make serve` takes them from a package.",
    "checkpoint_mismatch": "Remove the file that the detail names and run `make serve` again.",
    "gate_failed": "Do not use the model on this machine. The detail names the checks; report them.",
    "model_not_ready": "Wait a few seconds, or load the model with POST /api/v1/models/NAME/load.",
    "setup_error": "The sentence says what to change.",
}
"""What to do about errors whose class has no hint of its own, since the hint depends on the case."""


SOURCES = {
    "package": "in the package",
    "family": "in this repository",
    "download": "downloaded",
    "tiny": "made on the spot, not trained",
    "own": "your own",
}
"""Where weights come from, by the word of ``family.toml``."""

OTHERS = (
    (
        "`FORCEGATE_URL`",
        "Where `forcegate models`, `compare` and `forcegate.Client` find the gateway; `http://127.0.0.1:8000` when not set.",
    ),
    (
        "`FORCEGATE_API_KEY`",
        "The API key that `forcegate.Client` and the commands over REST send; see [security.md](security.md).",
    ),
    (
        "`FORCEGATE_GRPC`",
        "Where `forcegate evaluate` and `ForcegateCalculator` find Triton's gRPC, `host:port`; `127.0.0.1:8001` when not set.",
    ),
    (
        "`FORCEGATE_GRPC_CA`, `FORCEGATE_GRPC_CLIENT_CERTIFICATE`, `FORCEGATE_GRPC_CLIENT_KEY`",
        "PEM files for gRPC over TLS; the clients read these variables too.",
    ),
    (
        "`UV_FIND_LINKS`",
        "Where uv looks for wheels besides the package index, such as for a CPU build of torch; else `PIP_FIND_LINKS`.",
    ),
    ("`HF_TOKEN`", "Token for gated weights; `forcegate export` sends it to the hub alone."),
    ("`HF_ENDPOINT`", "A mirror of the hub, which `forcegate export` then asks instead of `https://huggingface.co`."),
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
    sections = [_section(family) for family in families.families.values() if _shown(family)]
    return MODELS + _speed() + "\n".join(sections)


def _speed() -> str:
    """Size and speed, of the models that have been measured (docs/speed.py)."""
    data = json.loads((ROOT / "docs" / "speed.json").read_text())
    rows = [
        (
            f"`{row['model']}`" + (" (random weights of that size)" if row["random_weights"] else ""),
            str(row["atoms"]),
            f"{row['structures_per_second']:g}",
            str(row["resident_mb"]),
            f"{row['load_seconds']:g}",
        )
        for row in sorted(data["models"], key=lambda row: (row["atoms"], -row["structures_per_second"]))
    ]
    head = ("model", "atoms", "structures a second", "resident memory, MB", "load, s")
    return SPEED.format(**data, table=_table(head, rows))


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
    head = ("family", "models", "functionals", "elements", "licence of the weights", "weights")
    rows = [_summary(family) for family in families.families.values() if _shown(family)]
    table = _table(head, rows)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


NAMED = 4
"""Models of a family, and functionals, that README.md names; docs/models.md has them all."""


def _shown(family: Family) -> list[Variant]:
    return [variant for variant in family.variants if not variant.hidden]


def _summary(family: Family) -> tuple[str, ...]:
    """The family's line in README.md."""
    variants = _shown(family)
    functionals = dict.fromkeys(v.functional_of(head) for v in variants for head in v.heads or ("",))
    sources = dict.fromkeys(SOURCES[v.checkpoint.source] for v in variants)
    more = len(variants) - NAMED
    return (
        family.title,
        _codes(v.name for v in variants[:NAMED]) + (f" and [{more} more](docs/models.md)" if more > 0 else ""),
        "; ".join([*functionals][:NAMED]) + (" ..." if len(functionals) > NAMED else ""),
        str(max(len(v.elements) for v in variants)),
        ", ".join(dict.fromkeys(v.licence for v in variants)),
        ", ".join(sources),
    )


def _section(family: Family) -> str:
    variants = _shown(family)
    about = (
        f"## {family.title}\n\nPackage `{family.package}` {family.version}, licence of the code: {family.licence}.\n"
        f"{family.reference}.\n"
    )
    head = ("model", "aliases", "what it is", "functional", "training data", "heads", "further outputs", "charge, spin", "licence")
    rows = [
        (
            f"`{v.name}`",
            _codes(v.aliases),
            v.summary,
            "; ".join(f"{h}: {v.functional_of(h)}" for h in v.heads) or v.functional,
            v.training_data,
            ", ".join(f"{h} (default)" if h == v.default_head else h for h in v.heads) or "one",
            ", ".join(v.extra_outputs) or "none",
            _charged(v),
            v.licence + (f"; to be accepted first: {v.consent}" if v.consent else ""),
        )
        for v in variants
    ]
    technical = (
        "model",
        "elements",
        "cutoff A",
        "dtype",
        "dispersion",
        "checks that it is excused from",
        "sha256 of the checkpoint",
    )
    details = [
        (
            f"`{v.name}`",
            f"{len(v.elements)}: {format_elements(v.elements)}",
            f"{v.cutoff:g}",
            " or ".join(sorted(v.dtypes, key=lambda dtype: dtype != v.dtype)),
            v.dispersion,
            "; ".join(f"{check}: {reason}" for check, reason in v.gate.skip.items()) or "none",
            _hash(v),
        )
        for v in variants
    ]
    return "\n".join([about, _table(head, rows), "", _table(technical, details), ""])


def _charged(variant: Variant) -> str:
    known = ", ".join(word for word, uses in (("charge", variant.uses_charge), ("spin", variant.uses_spin)) if uses)
    return known + (f" (heads {', '.join(variant.charge_heads)})" if variant.charge_heads else "") if known else "no"


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

Further variables belong to the clients, to the building of environments and to fetching weights:

{others}
"""

MODELS = """\
# Models

Generated from the `family.toml` of each family by `python -m docs.generate`. `GET /api/v1/models` says the same of a running
service, with the state of each model.

Every model gives energy, forces and, where it has one, stress. A checkpoint with other bytes than those of the table is never
loaded; where nobody publishes a hash, the one of the first copy is recorded in the state folder and holds from then on.
`dispersion` says whether a correction may be added ([physics.md](physics.md)). A check that a model is excused from is one of its
readiness gate ([architecture.md](architecture.md)), with the reason. Where two dtypes are named, the first is the default, and the
other can be asked for when the model is loaded ([operations.md](operations.md)).

"""

SPEED = """\
## Size and speed

Served to 32 gRPC clients with {threads} thread on {machine}, {date}; every other figure of that run is in benchmarks/results. A
load includes importing the package and the readiness gate.

![speed over memory](speed.png)

{table}

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
    return bring_up_to_date(pages(), arguments, "docs.generate")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
