"""What a fact may do to a job: a total, pure table over every pair of statuses and every kind of witness.

The table is the only place where transitions are decided. It is compiled into the commit script as one
string (`compiled()`), so that Redis decides by the very table that the tests read cell by cell.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import product
from typing import Final

from service.model import VERDICTS, Source, Status


class Witness(StrEnum):
    """How much a fact's path is worth."""

    ASKED = "asked"  # the vendor answered us: submit answers, polls
    TOLD = "told"  # the vendor told us by the job's own callback URL
    HINTED = "hinted"  # somebody who knows the vendor's shared callback URL told us
    OWN = "own"  # this service or its operator says so


class Decision(StrEnum):
    APPLY = "apply"
    SAME = "same"  # says what is known already
    STALE = "stale"  # says less than what is known, or what cannot be any more
    ASK = "ask"  # may be true: the vendor is asked, and its answer decides


#: How far a job has come. `expired` is our own guess, so it yields to every verdict and to nothing else.
RANK: Final = {
    Status.PENDING: 0,
    Status.UNCONFIRMED: 1,
    Status.QUEUED: 2,
    Status.PROCESSING: 3,
    Status.EXPIRED: 4,
    Status.SUCCEEDED: 5,
    Status.FAILED: 5,
    Status.CANCELLED: 5,
}

#: What only we can say of a job; a vendor never does.
OURS: Final = frozenset({Status.PENDING, Status.UNCONFIRMED, Status.EXPIRED})


def witness(source: Source, *, weak_path: bool = False) -> Witness:
    """The witness behind a source; `weak_path` is the vendor's shared callback URL."""
    if source in (Source.POLL, Source.SUBMIT):
        return Witness.ASKED
    if source is Source.CALLBACK:
        return Witness.HINTED if weak_path else Witness.TOLD
    return Witness.OWN


def decide(by: Witness, current: Status, observed: Status) -> Decision:
    """What becomes of a job in `current` of which `by` says `observed`. Defined for every combination."""
    if observed is current:
        return Decision.SAME
    if observed in VERDICTS:
        return _decide_verdict(by, current)
    if observed in OURS and by not in (Witness.OWN, Witness.ASKED):
        return Decision.STALE
    if observed is Status.PENDING and current is Status.UNCONFIRMED:  # certain now: the vendor has not taken it
        return Decision.APPLY
    return Decision.APPLY if RANK[observed] > RANK[current] else Decision.STALE


def _decide_verdict(by: Witness, current: Status) -> Decision:
    if current not in VERDICTS:
        return Decision.ASK if by is Witness.HINTED else Decision.APPLY
    # A contradiction. Whoever was not asked makes us ask; the asked vendor's answer decides; our own word never
    # overrules.
    return {Witness.ASKED: Decision.APPLY, Witness.OWN: Decision.STALE}.get(by, Decision.ASK)


def compiled() -> str:
    """The table as one letter a cell, in the order witness × current × observed of the enums."""
    return "".join(decide(*cell)[1] for cell in product(Witness, Status, Status))
