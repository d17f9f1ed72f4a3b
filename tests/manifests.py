"""`python -m tests.manifests`: what platforms and other programs read of this project, each by its format's validator.

The deployment files stand in `deploy/`; the API's documents are made as the service makes them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from service.api import asyncapi, openapi
from tests.support import node
from tests.support.deployment import NOBODY, settings
from tests.support.processes import BIN, ROOT, environment

#: What systemd says where the project is not installed at the place that the units name.
_NOT_INSTALLED: Final = "is not executable: No such file or directory"


def problems(root: Path) -> Iterator[tuple[str, str]]:
    """What was checked below `root`, each with what is wrong with it."""
    deploy, heroku = root / "deploy", ROOT / "tests" / "schemas" / "app.json"
    yield "app.json", _says("check-jsonschema", "--schemafile", heroku, root / "app.json")
    compose = deploy / "compose.yaml"
    yield "compose.yaml", _says("check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose)
    manifests = sorted(set((deploy / "kubernetes").glob("*.yaml")) - {deploy / "kubernetes" / "kustomization.yaml"})
    yield "kubernetes", _says("kubernetes-validate", "--strict", "--quiet", *manifests)
    if analyze := shutil.which("systemd-analyze"):
        said = _says(analyze, "verify", *sorted((deploy / "systemd").iterdir()))
        yield "systemd", "\n".join(line for line in said.splitlines() if _NOT_INSTALLED not in line)


def documents() -> Iterator[tuple[str, str]]:
    """The same of the documents that the web process serves."""
    described = msgspec.json.encode(openapi.document())
    with TemporaryDirectory() as folder:
        path = Path(folder) / "openapi.json"
        path.write_bytes(described)
        yield "openapi.json", _says("openapi-spec-validator", "--schema", "3.1", path)
    if shutil.which("node") and shutil.which("npm"):
        told = node.run("asyncapi.mjs", stdin=msgspec.json.encode(asyncapi.document(settings(NOBODY))).decode())
        yield "asyncapi.json", "" if told.startswith("channels: ") else told


def _says(*command: str | Path) -> str:
    """What a validator complains of; empty where it ends well."""
    words = [str(BIN / command[0]) if (BIN / command[0]).exists() else str(command[0]), *map(str, command[1:])]
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    return ended.stdout + ended.stderr or f"ended with {ended.returncode}" if ended.returncode else ""


def main() -> int:
    found = dict([*problems(ROOT), *documents()])
    for name, said in found.items():
        print(f"{name}: {said or 'valid'}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
