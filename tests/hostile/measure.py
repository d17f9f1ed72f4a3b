"""What is measured: memory of a process, medians and tails, and whether two groups of times can be told apart."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path


def resident(pid: int) -> int:
    """Bytes of memory that a process has now."""
    return _status(pid, "VmRSS") or _by_ps(pid)


def peak(pid: int) -> int:
    """Bytes of memory that a process has had at most; now, where the system does not tell."""
    return _status(pid, "VmHWM") or _by_ps(pid)


def _status(pid: int, name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _by_ps(pid: int) -> int:
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=False, text=True).stdout  # noqa: S607
    return int(told.strip() or 0) * 1024


def megabytes(size: float) -> str:
    return f"{size / 2**20:.0f} MB"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def rank_test(ones: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Mann-Whitney: how often one is more than another (0.5: nothing is told apart), and the p of that by chance."""
    values = sorted([(value, 0) for value in ones] + [(value, 1) for value in others])
    ranks, ties, at = 0.0, 0.0, 0
    while at < len(values):
        end = at
        while end < len(values) and values[end][0] == values[at][0]:
            end += 1
        size = end - at
        ranks += (at + end + 1) / 2 * sum(group == 0 for _, group in values[at:end])
        ties += size**3 - size
        at = end
    n, m = len(ones), len(others)
    u = ranks - n * (n + 1) / 2
    spread = math.sqrt(n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1))))
    z = (u - n * m / 2) / spread if spread else 0.0
    return u / (n * m), math.erfc(abs(z) / math.sqrt(2))
