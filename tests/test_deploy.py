"""The files in deploy/: valid to their formats' validators, and true to what the processes and the settings are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import obstore
import pytest
import yaml

from service import server
from service.settings import load
from service.vendors import VENDORS
from tests.manifests import problems
from tests.support.processes import BIN, ROOT, Processes, environment, free_port, listening

DEPLOY: Final = ROOT / "deploy"
MODULES: Final = {"web": "service.server", "worker": "workers.main", "poller": "workers.poller"}


def yaml_of(*path: str) -> list[Any]:
    return list(yaml.safe_load_all(DEPLOY.joinpath(*path).read_text()))


def commands() -> Iterator[tuple[str, list[str]]]:
    """Process → the words by which a platform starts it, from every file that has some."""
    for line in (ROOT / "Procfile").read_text().splitlines():
        name, _, command = line.partition(": ")
        yield name, re.sub(r"\$\{\w+:-(.*?)\}", r"\1", command).split()
    [compose] = yaml_of("compose.yaml")
    for name in MODULES:
        yield name, compose["services"][name]["command"]
        [deployment, *_] = yaml_of("kubernetes", f"{name}.yaml")
        yield name, deployment["spec"]["template"]["spec"]["containers"][0]["command"]
        [start] = re.findall(
            r"^ExecStart=(.*)$", (DEPLOY / f"systemd/callsheet-{name}.service").read_text(), re.MULTILINE
        )
        yield name, shlex.split(start)
    [default] = re.findall(r"^CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    yield "web", yaml.safe_load(default)


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_every_platform_starts_the_same_processes(name: str, command: list[str]) -> None:
    python, option, module, *arguments = command
    assert (Path(python).name, option, module) == ("python", "-m", MODULES[name])
    if name == "web":
        assert isinstance(server.main, click.Command)
        assert server.main.make_context("web", [*arguments]).params["port"] == 8000
    else:
        assert arguments == []


def test_every_platform_gives_the_worker_a_place_for_files_on_their_way() -> None:
    [compose] = yaml_of("compose.yaml")
    [deployment] = yaml_of("kubernetes", "worker.yaml")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert [name for name in MODULES if not compose["services"][name]["read_only"]] == ["worker"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert "TMPDIR=/var/tmp\n" in (DEPLOY / "systemd" / "callsheet-worker.service").read_text()


def test_the_files_are_valid() -> None:
    assert {name: said for name, said in problems(ROOT) if said} == {}


BROKEN: Final = {
    "app.json": ("app.json", '"quantity": 1', '"quantity": "one"'),
    "compose.yaml": ("deploy/compose.yaml", "read_only: true", "read_onyl: true"),
    "kubernetes": ("deploy/kubernetes/web.yaml", "readinessProbe", "readynessProbe"),
    "systemd": ("deploy/systemd/callsheet-web.service", "KillMode=mixed", "KillMode=mixd"),
}


@pytest.mark.parametrize(("name", "change"), list(BROKEN.items()))
def test_a_mistake_in_a_file_is_found(tmp_path: Path, name: str, change: tuple[str, str, str]) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    shutil.copy(ROOT / "app.json", tmp_path)
    path, right, wrong = change
    text = (tmp_path / path).read_text()
    (tmp_path / path).write_text(text.replace(right, wrong, 1))
    found = dict(problems(tmp_path))
    assert [checked for checked, said in found.items() if said] == [name] * (name in found)


def test_the_example_s_settings_are_a_deployment_s() -> None:
    lines = (DEPLOY / "callsheet.env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    filled = {name: value or "x" * 32 for name, value in given.items()}
    settings = load(VENDORS.values(), filled)
    assert all(account.complete for account in settings.accounts.values())
    assert all(name in (ROOT / "app.json").read_text() for name in given.keys() - {"REDIS_URL"})


def test_the_image_takes_what_it_needs_and_no_more() -> None:
    copied = re.findall(r"^COPY (?!--from)(\S+) ", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    allowed = re.findall(r"^!(.*)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(path.rstrip("/") for path in copied) == sorted(allowed)
    assert all((ROOT / path).exists() for path in allowed)


def test_the_s3_server_of_compose_serves_the_bucket_that_the_others_use(tmp_path: Path, processes: Processes) -> None:
    [compose] = yaml_of("compose.yaml")
    s3, port = compose["services"]["s3"], free_port()
    [command] = s3["command"]
    _, bucket = s3["volumes"][0].split(":")
    assert compose["x-callsheet"]["environment"]["STORAGE_URL"].split("/")[2] == Path(bucket).name
    folder = tmp_path / Path(bucket).name
    folder.mkdir()
    command = command.replace("$$", "$").replace(":9000", f"127.0.0.1:{port}").replace("/data", str(tmp_path))
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret-of-the-bucket"}
    server = processes.start("s3", ["/bin/sh", "-c", command], env={**keys, "RCLONE_CONFIG": ""})
    server.wait_until(lambda: listening(port), "the S3 server")
    options: Any = {
        "endpoint": f"http://127.0.0.1:{port}",
        "region": "us-east-1",
        "virtual_hosted_style_request": False,
    }
    store = obstore.store.S3Store(
        folder.name,
        access_key_id="key",
        secret_access_key="secret-of-the-bucket",
        client_options={"allow_http": True},
        **options,
    )
    obstore.put(store, "outputs/a.txt", b"here")
    assert (folder / "outputs" / "a.txt").read_bytes() == b"here"


def test_what_a_deployment_installs_is_what_is_tested() -> None:
    pins = {
        path: set(re.findall(r"^[a-z0-9].*==\S+", (ROOT / path).read_text(), re.MULTILINE))
        for path in ("requirements.txt", "requirements.lock")
    }
    assert pins["requirements.txt"] < pins["requirements.lock"]
    uv = [
        str(BIN / "uv"),
        "pip",
        "install",
        "--dry-run",
        "--offline",
        "--no-deps",
        "--quiet",
        "--require-hashes",
        "-r",
        "requirements.txt",
    ]
    assert subprocess.run(uv, cwd=ROOT, env=environment({"VIRTUAL_ENV": str(BIN.parent)}), check=False).returncode == 0
