"""The spin multiplicity that every family evaluates a structure with."""

from __future__ import annotations

from forcegate.structure import Structure


def multiplicity(structure: Structure) -> int:
    """2S+1 as it was given; where it was not, the lowest that the number of electrons allows.

    An even number of electrons can all be paired, which is a singlet (1); of an odd number one is left over, a doublet (2). Most
    packages take every structure for a singlet instead, which does not exist for a radical.

    Args:
        structure: charge in e, rounded to whole electrons; the spin 0 stands for none given.
    """
    electrons = int(structure.numbers.sum()) - round(structure.charge)
    return structure.spin or 1 + electrons % 2
