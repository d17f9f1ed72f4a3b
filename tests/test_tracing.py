"""One trace from a callback to its delivery, as a collector on loopback hears of it; and nothing where nobody asked."""

from __future__ import annotations

import gzip
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.deployment import environment
from tests.support.files import MP4, Files, whole
from tests.support.hooks import hooks_server
from tests.support.processes import BIN, Processes, eventually_async
from tests.support.web import CREDENTIALS, Web, web_process

SETTING: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Listener:
    """Takes what is posted to it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                listener.bodies.append(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def listening() -> Iterator[Listener]:
    listener = Listener()
    thread = threading.Thread(target=listener.server.serve_forever)
    thread.start()
    try:
        yield listener
    finally:
        listener.server.shutdown()
        thread.join()
        listener.server.server_close()


def spans(listener: Listener) -> list[tuple[str, str, Any]]:
    """Service, name and span of everything that was heard so far."""
    found = []
    for body in listener.bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            [service] = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
            found += [(service, span.name, span) for scope in resource.scope_spans for span in scope.spans]
    return found


async def test_a_callback_its_commit_its_task_and_its_deliveries_are_one_trace(
    processes: Processes, redis_url: str, tmp_path: Path, files: Files
) -> None:
    with listening() as collector:
        traced = {SETTING: collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        env = {"REDIS_URL": redis_url, "ALLOW_PRIVATE_NETWORKS": "1", **CREDENTIALS, **traced}
        async with hooks_server() as hooks:
            with web_process(tmp_path, env) as web:
                worker = processes.start(
                    "worker", [BIN / "python", "-m", "workers.main"], env=environment(web.settings) | traced
                )
                worker.wait_until(lambda: "worker started" in worker.output(), "its start")
                web.api.post("/v1/endpoints", json={"url": hooks.at("/hook")}).raise_for_status()
                callback_url, told = _callback(web, files)
                assert web.callback(callback_url, told).status_code == 200

                async def stored() -> bool:
                    return any(hook.event["type"] == "job.stored" for hook in hooks.got["/hook"])

                await eventually_async(stored, "the last delivery", timeout=20)
                [line] = [line for line in web.lines("callback") if line["http_status"] == 200]
                worker.stop()
            found = spans(collector)
            [at] = [span.trace_id.hex() for _, name, span in found if name == "callback"]
            mine = {(service, name) for service, name, span in found if span.trace_id.hex() == at}
            assert mine >= {
                ("callsheet-web", "callback"),
                ("callsheet-web", "record"),
                ("callsheet-worker", "workers.archive.store_outputs"),
                ("callsheet-worker", "record"),
                ("callsheet-worker", "deliver"),
            }
            assert line["trace_id"] == at
            by_type = {hook.event["type"]: hook.headers["traceparent"] for hook in hooks.got["/hook"]}
            ids = {span.span_id.hex() for _, name, span in found if name == "deliver"}
            for type_ in ("job.succeeded", "job.stored"):
                version, trace_id, span_id, _ = by_type[type_].split("-")
                assert (version, trace_id) == ("00", at), type_
                assert span_id in ids
            heard = b"".join(collector.bodies)
            assert callback_url.rpartition(".")[2].encode() not in heard
            assert all(secret.encode() not in heard for secret in web.settings.secret_keys)


def _callback(web: Web, files: Files) -> tuple[str, dict[str, Any]]:
    """Where a job's callback goes, and one that tells of a result."""
    job = web.track("lipsync_studio", vendor_job_id="v1")
    result = {"id": "v1", "status": "completed", "output": files.serve("/1.mp4", whole(MP4))}
    return job["callback_url"], result


@pytest.mark.parametrize("setting", [{}, {SETTING: "http://127.0.0.1:9"}], ids=["not asked for", "not installed"])
def test_without_the_setting_or_the_extra_nothing_is_imported(
    web: Web, tmp_path: Path, setting: dict[str, str]
) -> None:
    code = f"""
import asyncio, importlib.util, sys
find = importlib.util.find_spec
if {bool(setting)}:
    importlib.util.find_spec = lambda name, *rest: None if name == "opentelemetry" else find(name, *rest)
from service import tracing
from service.deployment import configured, opened
async def main():
    async with opened(configured(), "web"):
        with tracing.span("x", kind="server", a=1):
            tracing.note(b=2)
            assert tracing.traceparent() is None
asyncio.run(main())
ours = ("opentelemetry.exporter", "opentelemetry.proto", "opentelemetry.sdk.trace", "sentry_sdk")
print("imported:", sorted(name for name in sys.modules if name.startswith(ours)))
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    env = environment(web.settings) | setting | {"PATH": str(BIN)}
    ran = subprocess.run([BIN / "python", program], env=env, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, "imported: []"), ran.stderr
    assert ("wants callsheet[otel] installed" in ran.stdout) is bool(setting)
