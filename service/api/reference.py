"""`/docs`: the API's description for people, made of the very document that `/openapi.json` serves.

One page without scripts, which loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from typing import Final

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from service.api.openapi import Schema, document

_STYLE: Final = """
:root { color-scheme: light dark; --line: light-dark(#ddd, #444); --soft: light-dark(#666, #aaa); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 1px solid var(--line); padding-top: 1rem; margin-top: 2rem; font-size: 1.1rem; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
td { border-bottom: 1px solid var(--line); padding: .25rem .5rem .25rem 0; text-align: left; vertical-align: top; }
td:first-child { width: 16rem; }
small { color: var(--soft); font-weight: normal; }
b { display: inline-block; min-width: 4.5rem; }
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS: Final = {"content-security-policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; frame-ancestors 'none'"}


#: Cells, ready to be shown.
Row = tuple[str, str, str]


def routes() -> list[Route]:
    page = _page(document())

    async def reference(_request: Request) -> Response:
        return HTMLResponse(page, headers=_HEADERS)

    return [Route("/docs", reference, methods=["GET"])]


def _page(told: Schema) -> str:
    operations = [
        (method, path, operation) for path, item in told["paths"].items() for method, operation in item.items()
    ]
    return "".join(
        (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Callsheet API</title><style>{_STYLE}</style>',
            '<meta name="viewport" content="width=device-width"><h1>Callsheet API</h1>',
            f"<p>{escape(told['info']['summary'])} Every request carries <code>Authorization: Bearer …</code>. For ",
            'programs: <a href="/openapi.json">openapi.json</a>, <a href="/asyncapi.json">asyncapi.json</a>.</p><nav>',
            *(f'<a href="#{_id(method, path)}">{_name(method, path)}</a><br>' for method, path, _ in operations),
            "</nav>",
            *(part for operation in operations for part in _operation(*operation)),
            *(part for name, schema in told["components"]["schemas"].items() for part in _named(name, schema)),
        )
    )


def _operation(method: str, path: str, told: Schema) -> Iterator[str]:
    yield f'<h2 id="{_id(method, path)}">{_name(method, path)}</h2><p>{escape(told["summary"])}.</p>'
    if parameters := told.get("parameters"):
        yield _table((f"{each['name']} <small>{each['in']}</small>", _type(each["schema"]), "") for each in parameters)
    if body := told.get("requestBody"):
        schema = body["content"]["application/json"]["schema"]
        for kind in schema.get("anyOf", [schema]):
            title = kind.get("title", "")
            yield f"<p>Body{escape(f', {title}' if title else '')}: {'' if title else _type(kind)}</p>"
            yield _fields(kind)
    for status, answer in told["responses"].items():
        [schema] = [part.get("schema", {}) for part in answer.get("content", {}).values()] or [{}]
        told_as = f": {_type(schema)}" if status < "300" and schema else ""
        yield f"<div><b>{status}</b> {escape(answer['description'])}{told_as}</div>"


def _named(name: str, schema: Schema) -> Iterator[str]:
    yield f'<h2 id="{name}">{name}</h2><p>{escape(schema.get("description", ""))}</p>'
    if "properties" not in schema:
        yield f"<p>{_type(schema)}</p>"
    yield _fields(schema)


def _fields(schema: Schema) -> str:
    return _table(_rows(schema))


def _rows(schema: Schema, within: str = "") -> Iterator[Row]:
    """Name, type and meaning of each field; those of a submission's parts stand in place of the part."""
    for name, field in schema.get("properties", {}).items():
        [plain, *_] = field.get("anyOf", [field])
        if name in ("input", "vendor_input"):
            yield from _rows(plain, f"{name}.")
            continue
        needed = "" if name in schema.get("required", ()) else " <small>optional</small>"
        meaning = field.get("description", plain.get("description", ""))
        yield f"{within}{name}{needed}", _type(field), escape(meaning)


def _type(schema: Schema) -> str:
    """A schema in a few words; what has a name is a link. Patterns are for programs."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        return f'<a href="#{name}">{name}</a>'
    for word, between in (("anyOf", " or "), ("oneOf", " or "), ("allOf", " and ")):
        if word in schema and "properties" not in schema:
            return between.join(_type(part) for part in schema[word])
    if "const" in schema or "enum" in schema:
        words = ["null" if word is None else str(word) for word in schema.get("enum", [schema.get("const")])]
        return " · ".join(f"<code>{escape(word)}</code>" for word in words)
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if fields := schema.get("properties"):
        return "{" + ", ".join(f"{name}: {_type(field)}" for name, field in fields.items()) + "}"
    kind = schema.get("type", "any JSON")
    told = [" or ".join(kind) if isinstance(kind, list) else str(kind)]
    told += [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    return escape(", ".join(told))


_BOUNDS: Final = {"format": "as", "minimum": "from", "maximum": "to", "minLength": "at least", "maxLength": "at most"}


def _table(rows: Iterator[Row]) -> str:
    return "<table>" + "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows) + "</table>"


def _name(method: str, path: str) -> str:
    return f"<b>{method.upper()}</b> <code>{escape(path)}</code>"


def _id(method: str, path: str) -> str:
    return method + path.replace("/", "-").replace("{", "").replace("}", "")
