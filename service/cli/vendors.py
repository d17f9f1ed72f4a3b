"""`callsheet vendors`: what can be asked of whom, in the terminal."""

from __future__ import annotations

from typing import Any

import click

from service.cli.client import Client
from service.cli.output import json_option, print_json, table


@click.command()
@json_option
def vendors(as_json: bool) -> None:
    """Vendors and their models: what they take, what it costs, and whether there are credentials."""
    answer = Client().get("/v1/vendors")
    if as_json:
        return print_json(answer)
    columns = ("vendor", "model", "takes", "price", "callbacks", "credentials")
    table(columns, [_row(vendor, model) for vendor in answer["data"] for model in vendor["models"]])
    return None


def _row(vendor: dict[str, Any], model: dict[str, Any]) -> list[object]:
    present = vendor["credentials"]["present"]
    return [
        vendor["vendor"],
        model["name"],
        _takes(model),
        model["price"],
        "yes" if vendor["callbacks"] else "no",
        "yes" if present else "no",
    ]


def _takes(model: dict[str, Any]) -> str:
    """What is required; of a choice, all that can be chosen. Options are in `--json`."""
    fixed = [
        f"{prefix}{name}"
        for part, prefix in (("input", ""), ("vendor_input", "vendor_input."))
        for name in model[part].get("required", ())
    ]
    choices = [" or ".join(name.removeprefix("input.") for name in group) for group in model["one_of"]]
    return ", ".join([*choices, *fixed])
