"""Requests that schemathesis makes of our own OpenAPI: right ones, wrong ones, and ones that nobody has asked for.

What the document allows is taken, what it forbids is refused, every answer has the status and the form that it is
described with, and none is an error of ours. `/v1/events` never ends, and is left to the other tests.
"""

from __future__ import annotations

import re
import subprocess
from typing import Final

from tests.support.processes import BIN, environment
from tests.support.servers import valkey_server
from tests.support.web import API_KEY, CREDENTIALS, web_process

from .stage import SEED, Result, Stage

EXAMPLES: Final = 150  #: of each operation, beside what its schema's edges make


def run(stage: Stage) -> Result:
    result, env = Result(), {"ALLOW_PRIVATE_NETWORKS": "1", **CREDENTIALS}
    with (
        valkey_server(stage.folder) as valkey,
        web_process(stage.folder, {"REDIS_URL": valkey.url, **env}) as web,
    ):
        stage.say("requests made of /openapi.json")
        phases, examples = stage.of(("coverage,fuzzing", EXAMPLES), ("fuzzing", 3))
        told = subprocess.run(
            [
                *(BIN / "schemathesis", "run", f"{web.url}/openapi.json"),
                *("--phases", phases, "--max-examples", str(examples), "--seed", str(SEED)),
                *("--exclude-path", "/v1/events", "--header", f"Authorization: Bearer {API_KEY}"),
                *("--continue-on-failure", "--suppress-health-check", "all", "--no-color"),
            ],
            cwd=stage.folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        counted = re.search(r"(\d+) generated", told.stdout)
        tested = re.search(r"Tested: (\d+)", told.stdout)
        result.note(f"{counted[1] if counted else 0} requests of schemathesis", fine=counted is not None)
        result.note(f"{tested[1] if tested else 0} operations of the API", fine=tested is not None)
        failures = re.findall(r"^- (ST\d+ .*)$", told.stdout, re.MULTILINE)
        words = f"{len(failures)} disagreements with the document"
        result.note(words, fine=not failures and told.returncode == 0)
        if told.returncode:
            result.faults.append(told.stdout[-6000:] + told.stderr[-1000:])
        errors = sum('"level":"error"' in line for line in web.process.output().splitlines())
        result.note(f"{errors} errors in the log", fine=not errors)
    return result
