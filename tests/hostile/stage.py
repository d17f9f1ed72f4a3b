"""What a scenario is given and what it hands back: figures, and whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

#: Of everything that is left to chance.
SEED: Final = 20261120


@dataclass(frozen=True)
class Stage:
    """Where a scenario plays."""

    folder: Path  #: empty, and its own
    short: bool  #: in seconds rather than minutes, for `make test`
    say: Callable[[str], None]  #: what is being done

    def of(self, full: T, short: T) -> T:
        return short if self.short else full


@dataclass
class Result:
    """What came of a scenario."""

    figures: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  #: none: nothing got in

    def note(self, words: str, *, fine: bool = True) -> None:
        """A figure, and whether it is as it should be."""
        self.figures.append(words if fine else f"{words}  ← BAD")
        if not fine:
            self.faults.append(words)


Scenario = Callable[[Stage], Result]
