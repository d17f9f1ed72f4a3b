"""The smallest task there is: what is left is what a worker costs."""

from __future__ import annotations


def noop(body: object) -> None:
    """For RQ's own workers."""


async def anoop(body: object) -> None:
    """For ours."""
