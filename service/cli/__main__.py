"""`python -m service.cli`: the program where it is not installed, as in a one-off dyno."""

from __future__ import annotations

from service.cli import main

if __name__ == "__main__":
    main(prog_name="callsheet")
