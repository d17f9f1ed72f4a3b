"""`/docs`: everything that the document describes, on one page that is whole by itself."""

from __future__ import annotations

import base64
import hashlib
import re

from service.api import openapi
from tests.support.web import Web


def test_the_reference_shows_the_whole_document_and_loads_nothing(web: Web) -> None:
    answer = web.http.get("/docs")
    page, told = answer.text, openapi.document()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    headings = re.findall(r"<h2 id=\"(.*?)\">(.*?)</h2>", page)
    named = [re.sub(r"<.*?>", "", words) for _, words in headings]
    operations = [f"{method.upper()} {path}" for path, item in told["paths"].items() for method in item]
    assert named == [*operations, *told["components"]["schemas"]]
    assert set(re.findall(r'href="#(.*?)"', page)) <= {anchor for anchor, _ in headings}
    assert set(re.findall(r'(?:href|src)="([^#].*?)"', page)) == {"/openapi.json", "/asyncapi.json"}
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'"
    assert answer.headers["content-security-policy"] == policy
    assert "<script" not in page
    assert all(
        schema["description"].split(" ")[0] in page
        for schema in told["components"]["schemas"].values()
        if "description" in schema
    )
