"""Starts one of the product's own processes with some of its constants changed, so that a test need not wait as long.

`python -m tests.hostile.launcher service.server service.server.HEAD_SECONDS=1 -- --port 8000` is the Procfile's
`python -m service.server --port 8000`, but for the constant.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.processes import BIN


def command(module: str, constants: Mapping[str, float | str], *options: str) -> list[str | Path]:
    """The words that start `module` with these constants. `hook` names a function that is called first."""
    changed = [f"{name}={json.dumps(value)}" for name, value in constants.items()]
    return [BIN / "python", "-m", "tests.hostile.launcher", module, *changed, "--", *options]


def _main(words: list[str]) -> None:
    split = words.index("--")
    module, *changes = words[:split]
    for change in changes:
        name, _, value = change.partition("=")
        owner, _, constant = name.rpartition(".")
        if constant == "hook":
            function: Callable[[], None] = getattr(importlib.import_module(owner), json.loads(value))
            function()
            continue
        changed = importlib.import_module(owner)
        getattr(changed, constant)  # a constant that is no more would be set in vain
        setattr(changed, constant, json.loads(value))
    sys.argv = [module, *words[split + 1 :]]
    main: Callable[[], Any] = importlib.import_module(module).main
    asyncio.run(main()) if inspect.iscoroutinefunction(main) else main()


if __name__ == "__main__":
    _main(sys.argv[1:])
