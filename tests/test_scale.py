"""Many processes do what one of each does; `make scale` shows it with ten thousand jobs."""

from __future__ import annotations

from pathlib import Path

from tests.scale import MANY, ONE, run

JOBS = 24


def test_many_processes_have_the_ledger_of_one_of_each(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "many"]
    for folder in folders:
        folder.mkdir()
    one, many = (run(folder, JOBS, processes) for folder, processes in zip(folders, (ONE, MANY), strict=True))
    assert one.findings == many.findings == []
    assert one.ledger == many.ledger
    assert len(one.ledger) == JOBS
