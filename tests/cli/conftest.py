"""A running `callsheet up`, of the test's own or of the file's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Processes, processes_in
from tests.support.terminal import Up, start_up


@pytest.fixture
def up(tmp_path: Path, processes: Processes) -> Up:
    """One of the test's own, on which a vendor, Chanjing, takes one job a minute."""
    return start_up(processes, tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One for tests that harm no other's jobs."""
    folder = tmp_path_factory.mktemp("shared")
    with processes_in(folder) as started:
        yield start_up(started, folder)
