"""``<environment>/bin/python -m forcefields.make_tiny VARIANT PATH...``: tiny checkpoints of a family's real architectures.

Importing a package takes longer than making a model of it, so one process makes all that are wanted of a family.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

from forcefields import catalogue
from forcefields.runtime.loading import module_of
from forcefields.runtime.settings import ModelSettings, keep_out_of_home


def main() -> None:
    """Calls ``make(kind, path)`` of the family's ``tiny.py`` for each pair of a variant and the path of its checkpoint.

    Each is made by a copy of this process as it is after the import: packages number the code that they compile, and set torch's
    default type, so that in one process the bytes of a checkpoint would depend on which were made before it.
    """
    names, paths = sys.argv[1::2], sys.argv[2::2]
    keep_out_of_home(ModelSettings.from_environment().state)
    families = catalogue.load()
    copies = multiprocessing.get_context("fork")
    for name, path in zip(names, paths, strict=True):
        variant = families.resolve(name)
        make = module_of(families.family_of(variant), "tiny").make
        process = copies.Process(target=make, args=(variant.checkpoint.path, Path(path)))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{name} was not made.")


if __name__ == "__main__":
    main()
