"""``<environment>/bin/python -m forcefields.make_tiny VARIANT PATH``: a tiny checkpoint of the family's real architecture."""

from __future__ import annotations

import sys
from pathlib import Path

from forcefields import catalogue
from forcefields.runtime.loading import module_of
from forcefields.runtime.settings import ModelSettings, keep_out_of_home


def main() -> None:
    """Calls ``make(kind, path)`` of the family's ``tiny.py``."""
    name, path = sys.argv[1:]
    keep_out_of_home(ModelSettings.from_environment().state)
    families = catalogue.load()
    variant = families.resolve(name)
    module_of(families.family_of(variant), "tiny").make(variant.checkpoint.path, Path(path))


if __name__ == "__main__":
    main()
