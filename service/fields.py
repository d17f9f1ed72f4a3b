"""Reads JSON objects: field by field, so that every bad one is named at once, and none that is there twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, get_args

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

#: Field → what is wrong with a value of the right type, or None.
Checks = Mapping[str, Callable[[Any], str | None]]


#: Unknown fields that are named one by one.
_TOLD: Final = 100


class FieldError(msgspec.Struct, frozen=True):
    field: str
    detail: str


def read_fields(
    given: Mapping[str, object], type_: type[T], checks: Checks | None = None, *, within: str = ""
) -> T | list[FieldError]:
    """`given` as `type_`, each field of which also passes its check; or every field that is missing, unknown or wrong.

    Values are what JSON decodes to, or still `msgspec.Raw`. `within` goes before the fields' names in the errors.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(type_)}
    known = f"unknown field; known are {', '.join(fields)}" if fields else "unknown field; there are none"
    unknown = [name for name in given if name not in fields]
    errors = [FieldError(within + name[:100], known) for name in unknown[:_TOLD]]
    if len(unknown) > _TOLD:
        errors.append(FieldError(within + "…", f"{len(unknown) - _TOLD} more unknown fields"))
    values: dict[str, object] = {}
    for name, field in fields.items():
        if name in given:
            try:
                values[field.name] = _read(given[name], field.type)
            except RecursionError:
                errors.append(FieldError(within + name, "is nested too deeply"))
            except (msgspec.DecodeError, UnicodeError) as error:
                form = _form(field.type) if "matching regex" in str(error) else None
                errors.append(FieldError(within + name, f"must be {form}" if form else _lower(str(error))))
            else:
                wrong = checks[name](values[field.name]) if checks and name in checks else None
                errors += [FieldError(within + name, wrong)] if wrong else []
        elif field.required:
            errors.append(FieldError(within + name, "is required"))
    return errors or type_(**values)


#: Commas and opening brackets in one JSON text: what stands between two of them may take hundreds of bytes here.
MAX_PARTS: Final = 100_000


def too_many_parts(body: bytes) -> bool:
    """Whether reading the JSON in `body` would take far more time and memory than its length shows."""
    return len(body) > MAX_PARTS and sum(map(body.count, (b",", b"[", b"{"))) > MAX_PARTS


def said_twice(body: bytes | str, found: object) -> bool:
    """Whether an object in the JSON text `body`, which reads as `found`, has a key twice: readers disagree on those."""
    text = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    # What is said once has all its quotation marks when it is written again; one may only be spelled otherwise.
    if text.count(b'"') == msgspec.json.encode(found).count(b'"') and b"\\u0022" not in text:
        return False
    try:
        json.loads(text.decode(errors="surrogatepass"), object_pairs_hook=_unique)
    except _Twice:
        return True
    return False


class _Twice(Exception):
    pass


def _unique(pairs: list[tuple[str, object]]) -> None:
    if len({key for key, _ in pairs}) < len(pairs):
        raise _Twice


def _read(value: object, type_: Any) -> object:
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value, type=type_)
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError:
        if isinstance(value, float) and value.is_integer():  # 5.0 is an integer too, to JSON Schema
            return msgspec.convert(int(value), type_)
        raise


def _form(type_: object) -> str | None:
    """What a pattern of the type asks for, in the words of its `Meta(extra={"form": …})`."""
    for part in (*getattr(type_, "__metadata__", ()), *get_args(type_)):
        if isinstance(part, msgspec.Meta) and part.extra:
            return str(part.extra["form"])
        if found := _form(part):
            return found
    return None


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
