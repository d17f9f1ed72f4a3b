"""The scenarios, in the order in which they are played."""

from __future__ import annotations

from typing import Final

from tests.chaos.cast import Scenario
from tests.chaos.scenarios.differences import DIFFERENCES
from tests.chaos.scenarios.kills import KILLS
from tests.chaos.scenarios.objects import OBJECTS
from tests.chaos.scenarios.stores import STORES
from tests.chaos.scenarios.vendors import VENDOR_FAULTS

SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.name: scenario for scenario in (*KILLS, *STORES, *VENDOR_FAULTS, *OBJECTS, *DIFFERENCES)
}
