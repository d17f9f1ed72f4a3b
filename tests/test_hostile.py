"""Each scenario of the hostile suite in its short form; `make hostile` plays them whole, and tells the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.__main__ import SCENARIOS
from tests.hostile.measure import rank_test
from tests.hostile.stage import Stage


@pytest.mark.parametrize("name", SCENARIOS)
def test_nobody_gets_in(name: str, tmp_path: Path) -> None:
    result = SCENARIOS[name](Stage(tmp_path, short=True, say=lambda _: None))
    assert result.faults == [], "\n".join(result.figures)
    assert result.figures


def test_the_rank_test_tells_apart_what_differs() -> None:
    even, odd = [float(n) for n in range(0, 400, 2)], [float(n) for n in range(1, 400, 2)]
    share, p = rank_test(even, odd)
    assert abs(share - 0.5) < 0.01
    assert p > 0.5
    share, p = rank_test(even, [value + 100 for value in odd])
    assert share < 0.4
    assert p < 0.001
    assert rank_test([1.0] * 50, [1.0] * 50) == (0.5, 1.0)
