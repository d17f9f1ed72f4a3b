"""Our worker with one more task on its list, which does nothing. Settings as ever, from the environment."""

from __future__ import annotations

import uvloop

from workers import main

from .noop import anoop

if __name__ == "__main__":
    main.TASKS[f"{anoop.__module__}.{anoop.__name__}"] = anoop
    uvloop.run(main.main())
