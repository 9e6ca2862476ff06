"""What a model process remembers over its own death."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from forcefields.runtime.journal import Journal, digest
from forcegate.structure import Structure


def structure(x: float) -> Structure:
    return Structure(np.array([18, 18], dtype=np.int32), np.array([[0, 0, 0], [x, 0, 0]]))


def die_with(path: Path, *structures: Structure) -> None:
    """A process that ends during a pass over these structures."""
    child = os.fork()
    if child == 0:
        with Journal(path).during([digest(each, "") for each in structures], acquit=True):
            os._exit(1)
    os.waitpid(child, 0)


def test_a_pass_that_ends_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "m")
    with journal.during([digest(structure(3.0), "")], acquit=True):
        pass
    assert Journal(tmp_path / "m").empty


def test_a_pass_that_raises_is_not_a_death(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "m")
    try:
        with journal.during([digest(structure(3.0), "")], acquit=True):
            raise RuntimeError
    except RuntimeError:
        pass
    assert Journal(tmp_path / "m").empty


def test_all_of_a_deadly_pass_are_suspects_and_none_is_condemned(tmp_path: Path) -> None:
    die_with(tmp_path / "m", structure(3.0), structure(4.0))
    journal = Journal(tmp_path / "m")
    assert journal.suspected(digest(structure(3.0), ""))
    assert journal.suspected(digest(structure(4.0), ""))
    assert not journal.suspected(digest(structure(5.0), ""))
    assert not journal.condemned(digest(structure(3.0), ""))


def test_two_deaths_alone_condemn_and_one_does_not(tmp_path: Path) -> None:
    for deaths in (1, 2):
        die_with(tmp_path / "m", structure(3.0))
        assert Journal(tmp_path / "m").condemned(digest(structure(3.0), "")) == (deaths == 2)


def test_two_processes_of_one_model_have_a_pass_each_and_a_new_one_reads_that_of_the_dead(tmp_path: Path) -> None:
    living = Journal(tmp_path / "m")
    with living.during([digest(structure(5.0), "")], acquit=True):
        die_with(tmp_path / "m", structure(3.0))
        third = Journal(tmp_path / "m")
        assert third.suspected(digest(structure(3.0), ""))
        assert not third.suspected(digest(structure(5.0), "")), "whoever evaluates it lives"
        with third.during([digest(structure(3.0), "")], acquit=True):
            pass
        assert Journal(tmp_path / "m").empty


def test_who_survives_a_pass_alone_is_acquitted(tmp_path: Path) -> None:
    die_with(tmp_path / "m", structure(3.0), structure(4.0))
    journal = Journal(tmp_path / "m")
    with journal.during([digest(structure(3.0), "")], acquit=True):
        pass
    again = Journal(tmp_path / "m")
    assert not again.suspected(digest(structure(3.0), ""))
    assert again.suspected(digest(structure(4.0), ""))


def test_a_step_before_the_last_acquits_nobody(tmp_path: Path) -> None:
    die_with(tmp_path / "m", structure(3.0))
    journal = Journal(tmp_path / "m")
    with journal.during([digest(structure(3.0), "")], acquit=False):
        pass
    assert Journal(tmp_path / "m").suspected(digest(structure(3.0), ""))


def test_files_that_are_cut_short_do_no_harm(tmp_path: Path) -> None:
    die_with(tmp_path / "m", structure(3.0))
    (tmp_path / "m.json").write_text('{"half')
    (tmp_path / "m.pass").write_bytes(b"\x05\x00")
    assert Journal(tmp_path / "m").empty


def test_the_digest_tells_head_cell_and_charge_apart() -> None:
    base = structure(3.0)
    charged = Structure(base.numbers, base.positions, charge=1.0)
    celled = Structure(base.numbers, base.positions, cell=np.eye(3))
    assert len({digest(base, ""), digest(base, "PBE"), digest(charged, ""), digest(celled, "")}) == 4
