"""The small form of `make fanout`: whoever lives has every event in order, whatever the others do."""

from __future__ import annotations

from pathlib import Path

from tests import fanout


async def test_bad_endpoints_take_nothing_from_good_ones(tmp_path: Path) -> None:
    rows, wrong = await fanout.run(60, 3.0, bad=True, folder=tmp_path)
    assert wrong == []
    figures = {kind: [int(figure.replace(",", "")) for figure in more if figure != "-"] for kind, *more in rows}
    assert list(figures) == ["10 good", "5 dead", "3 slow", "2 flaky"]
    for kind in ("10 good", "3 slow", "2 flaky"):
        expected, taken, requests, *_ = figures[kind]
        assert 0 < expected == taken <= requests
    assert figures["5 dead"][1] == 0
    assert figures["5 dead"][2] < 200, "an endpoint that is dead is left alone"
    assert figures["10 good"][4] < 3000
