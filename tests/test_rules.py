"""The transition table, written out: what each kind of witness may do to a job, and that Redis decides the same."""

from __future__ import annotations

from typing import Final

import pytest

from service.deployment import Deployment
from service.jobs import rules
from service.jobs.rules import Decision, Witness
from service.model import VERDICTS, Observation, Source, Status, new_id

#: `+` it is applied · `=` it is known already · `.` it is stale · `?` the vendor is asked.
#: A row for the status that the job has, a column for the one that is observed.
TABLE: Final = {
    Witness.ASKED: """
                  pending unconfirmed queued processing succeeded failed cancelled expired
      pending        =         +         +        +         +        +       +        +
      unconfirmed    +         =         +        +         +        +       +        +
      queued         .         .         =        +         +        +       +        +
      processing     .         .         .        =         +        +       +        +
      succeeded      .         .         .        .         =        +       +        .
      failed         .         .         .        .         +        =       +        .
      cancelled      .         .         .        .         +        +       =        .
      expired        .         .         .        .         +        +       +        =
    """,
    Witness.TOLD: """
                  pending unconfirmed queued processing succeeded failed cancelled expired
      pending        =         .         +        +         +        +       +        .
      unconfirmed    .         =         +        +         +        +       +        .
      queued         .         .         =        +         +        +       +        .
      processing     .         .         .        =         +        +       +        .
      succeeded      .         .         .        .         =        ?       ?        .
      failed         .         .         .        .         ?        =       ?        .
      cancelled      .         .         .        .         ?        ?       =        .
      expired        .         .         .        .         +        +       +        =
    """,
    Witness.HINTED: """
                  pending unconfirmed queued processing succeeded failed cancelled expired
      pending        =         .         +        +         ?        ?       ?        .
      unconfirmed    .         =         +        +         ?        ?       ?        .
      queued         .         .         =        +         ?        ?       ?        .
      processing     .         .         .        =         ?        ?       ?        .
      succeeded      .         .         .        .         =        ?       ?        .
      failed         .         .         .        .         ?        =       ?        .
      cancelled      .         .         .        .         ?        ?       =        .
      expired        .         .         .        .         ?        ?       ?        =
    """,
    Witness.OWN: """
                  pending unconfirmed queued processing succeeded failed cancelled expired
      pending        =         +         +        +         +        +       +        +
      unconfirmed    +         =         +        +         +        +       +        +
      queued         .         .         =        +         +        +       +        +
      processing     .         .         .        =         +        +       +        +
      succeeded      .         .         .        .         =        .       .        .
      failed         .         .         .        .         .        =       .        .
      cancelled      .         .         .        .         .        .       =        .
      expired        .         .         .        .         +        +       +        =
    """,
}

SIGNS: Final = {"+": Decision.APPLY, "=": Decision.SAME, ".": Decision.STALE, "?": Decision.ASK}

#: The way by which each kind of witness speaks to the tracker.
PATHS: Final[dict[Witness, tuple[Source, bool]]] = {
    Witness.ASKED: (Source.POLL, False),
    Witness.TOLD: (Source.CALLBACK, False),
    Witness.HINTED: (Source.CALLBACK, True),
    Witness.OWN: (Source.OPERATOR, False),
}

Cell = tuple[Witness, Status, Status]


def written_out() -> dict[Cell, Decision]:
    """`TABLE`, cell by cell."""
    cells = {}
    for witness, grid in TABLE.items():
        header, *rows = (line.split() for line in grid.strip().splitlines())
        for current, *signs in rows:
            for observed, sign in zip(header, signs, strict=True):
                cells[witness, Status(current), Status(observed)] = SIGNS[sign]
    return cells


CELLS: Final = written_out()


def test_the_table_is_total() -> None:
    assert set(CELLS) == {(by, current, seen) for by in Witness for current in Status for seen in Status}


def test_the_rules_decide_as_written_out() -> None:
    assert {cell: rules.decide(*cell) for cell in CELLS} == CELLS


def test_the_compiled_table_says_the_same_in_the_order_of_the_enums() -> None:
    letters = {Decision.APPLY: "p", Decision.SAME: "a", Decision.STALE: "t", Decision.ASK: "s"}
    written = [letters[CELLS[by, current, seen]] for by in Witness for current in Status for seen in Status]
    assert list(rules.compiled()) == written


@pytest.mark.parametrize("witness", Witness)
async def test_redis_decides_as_written_out_and_moves_the_job_only_where_it_applies(
    deployment: Deployment, witness: Witness
) -> None:
    expected, found = {}, {}
    for current in Status:
        for observed in Status:
            decision = CELLS[witness, current, observed]
            expected[current, observed] = decision, observed if decision is Decision.APPLY else current
            found[current, observed] = await tried(deployment, witness, current, observed)
    assert found == expected


async def tried(deployment: Deployment, witness: Witness, current: Status, observed: Status) -> tuple[str, Status]:
    """What becomes of a new job that was brought to `current`, and of which `witness` says `observed`."""
    record, job_id = deployment.tracker.record, new_id("job", await deployment.store.now_ms())
    await record(Observation(source=Source.SUBMIT), vendor="kitta", job_id=job_id, create=True)
    if current is not Status.PENDING:
        brought = await record(Observation(source=Source.OPERATOR, status=current), vendor="kitta", job_id=job_id)
        assert brought.outcome == "apply"
    source, weak_path = PATHS[witness]
    seen = Observation(source=source, status=observed)
    recorded = await record(seen, vendor="kitta", job_id=job_id, weak_path=weak_path)
    job = await deployment.store.job(job_id)
    assert job
    return recorded.outcome, job.status


@pytest.mark.parametrize(
    ("source", "weak_path", "expected"),
    [
        (Source.POLL, False, Witness.ASKED),
        (Source.SUBMIT, False, Witness.ASKED),
        (Source.CALLBACK, False, Witness.TOLD),
        (Source.CALLBACK, True, Witness.HINTED),
        (Source.ARCHIVE, False, Witness.OWN),
        (Source.DEADLINE, False, Witness.OWN),
        (Source.OPERATOR, False, Witness.OWN),
        # The shared URL makes a weak witness of callbacks alone.
        (Source.POLL, True, Witness.ASKED),
        (Source.OPERATOR, True, Witness.OWN),
    ],
)
def test_a_source_is_worth_as_much_as_its_path(source: Source, weak_path: bool, expected: Witness) -> None:
    assert rules.witness(source, weak_path=weak_path) is expected


def applied() -> set[Cell]:
    return {cell for cell, decision in CELLS.items() if decision is Decision.APPLY}


def test_a_status_falls_in_rank_only_where_it_is_certain_that_the_vendor_has_not_taken_the_job() -> None:
    falls = {cell for cell in applied() if rules.RANK[cell[2]] < rules.RANK[cell[1]]}
    assert falls == {(by, Status.UNCONFIRMED, Status.PENDING) for by in (Witness.ASKED, Witness.OWN)}


def test_a_verdict_is_overruled_only_by_another_verdict_of_the_asked_vendor() -> None:
    overruled = {(by, observed) for by, current, observed in applied() if current in VERDICTS}
    assert overruled == {(Witness.ASKED, verdict) for verdict in VERDICTS}


def test_nothing_but_a_verdict_leaves_expired() -> None:
    assert {observed for _, current, observed in applied() if current is Status.EXPIRED} == VERDICTS


def test_a_verdict_by_the_shared_url_is_never_applied_unasked() -> None:
    assert not [cell for cell in applied() if cell[0] is Witness.HINTED and cell[2] in VERDICTS]


def test_no_callback_can_say_what_only_this_service_says() -> None:
    assert not [cell for cell in applied() if cell[0] in (Witness.TOLD, Witness.HINTED) and cell[2] in rules.OURS]


def test_what_is_known_already_is_the_same_for_every_witness() -> None:
    same = {cell for cell, decision in CELLS.items() if decision is Decision.SAME}
    assert same == {(by, status, status) for by in Witness for status in Status}


def test_the_vendor_is_asked_about_verdicts_alone() -> None:
    assert {observed for (_, _, observed), decision in CELLS.items() if decision is Decision.ASK} == VERDICTS
