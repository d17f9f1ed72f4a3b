"""The audit of what is pinned: it finds what is wrong, and never says that it looked where it could not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import audit
from tests.support.files import Files, raw, whole
from tests.support.processes import ROOT

HASH = f" \\\n    --hash=sha256:{'0' * 64}"
LOCK = "\n".join(
    (
        "# made by hand",
        f"a-package==1.0{HASH}",
        "    # via b",
        f"b.package==2.0 ; python_version < '3' {HASH}",
        f"c==3.0{HASH}\n",
    )
)


@pytest.fixture(autouse=True)
def its_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins that are installed, and no answer of before."""
    lock = tmp_path / "requirements.lock"
    lock.write_text(LOCK)
    monkeypatch.setattr(audit, "LOCK", lock)
    monkeypatch.setattr(audit, "KEPT", tmp_path / "audit.json")
    monkeypatch.setattr(audit, "differences", lambda _: ([], []))


def osv(files: Files, monkeypatch: pytest.MonkeyPatch, *advisories: list[str]) -> None:
    results = [{"vulns": [{"id": id_} for id_ in ids]} if ids else {} for ids in advisories]
    answer = whole(json.dumps({"results": results}).encode(), media_type="application/json")
    monkeypatch.setattr(audit, "OSV", files.serve("/v1/querybatch", answer))


def test_pins_are_those_that_this_machine_takes() -> None:
    assert audit.pins(LOCK) == {"a-package": "1.0", "c": "3.0"}
    assert len(audit.pins((ROOT / "requirements.lock").read_text())) > 40


@pytest.mark.parametrize("line", ["a==1.0", f"a>=1.0{HASH}"])
def test_what_is_not_pinned_by_version_and_hash_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="a is not pinned by version and hash"):
        audit.pins(f"{line}\n")


def test_without_advisories_all_is_well(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    osv(files, monkeypatch, [], [])
    assert audit.main() == 0
    assert "known vulnerabilities: 0, as OSV knew them 0 days ago" in capsys.readouterr().out
    [request] = files.requests("/v1/querybatch")
    package = {"ecosystem": "PyPI", "name": "a-package"}
    assert request.json["queries"][0] == {"package": package, "version": "1.0"}


def test_an_advisory_is_named_and_an_error_also_when_osv_is_gone(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    osv(files, monkeypatch, [], ["PYSEC-1", "GHSA-2"])
    for _ in range(2):
        assert audit.main() == 1
        assert "c 3.0: https://osv.dev/PYSEC-1, https://osv.dev/GHSA-2" in capsys.readouterr().out
        files.serve("/v1/querybatch", raw(b""))


def test_where_nobody_was_asked_nothing_is_said_to_be_well(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    osv(files, monkeypatch, [], [])
    audit.main()
    files.serve("/v1/querybatch", raw(b""))
    audit.LOCK.write_text(LOCK.replace("3.0", "3.1"))
    assert audit.main() == 0
    assert "NOT AUDITED" in capsys.readouterr().out


def test_what_is_installed_otherwise_than_pinned_is_an_error(
    files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    osv(files, monkeypatch, [], [])
    monkeypatch.undo()
    wrong, beside = audit.differences({"pytest": "0.1", "no-such-package": "1.0"})
    assert [line.split()[0] for line in wrong] == ["pytest", "no-such-package"]
    assert "msgspec" in beside
    assert "callsheet" not in beside
