"""Users type the names they know: an alias leads to the canonical model over gRPC as over REST."""

from __future__ import annotations

import pytest
from ase.build import bulk

from forcegate import ForcegateCalculator
from forcegate.errors import UnknownModel
from tests.service import RunningService


def test_an_alias_is_the_canonical_model(service: RunningService) -> None:
    copper = bulk("Cu")
    by_alias = ForcegateCalculator("chgnet", address=service.grpc)
    energy = by_alias.get_potential_energy(copper)
    assert energy == pytest.approx(ForcegateCalculator("chgnet-0.3.0", address=service.grpc).get_potential_energy(copper), abs=1e-6)
    assert by_alias.provenance["model"] == "chgnet-0.3.0"


def test_a_name_that_is_no_alias_is_unknown(service: RunningService) -> None:
    calculator = ForcegateCalculator("chgnett", address=service.grpc, connect_timeout=2)
    with pytest.raises(UnknownModel, match="chgnett"):
        calculator.get_potential_energy(bulk("Cu"))
