"""Requests that a model takes, made up from its own types: for tests of everything that is done with them."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from service.vendors.inputs import Model

URLS: Final = ("https://example.com/face.mp4", "http://example.com/a%20b.mp3?x=1&y=2", "https://例え.example/声.wav#t")

#: `input` and `vendor_input` of one request, as JSON.
Given = tuple[dict[str, Any], dict[str, Any]]


def least(model: Model[Any, Any]) -> Given:
    """What is required, and of each choice the first that is of `vendor_input`, with what that needs."""
    names = {next((name for name in group if name.startswith("vendor_input.")), group[0]) for group in model.one_of}
    names |= required(model) | {needed for name, needed in model.needs.items() if name in names}
    return split({name: value for name, value in _examples(model).items() if name in names})


def given(model: Model[Any, Any]) -> st.SearchStrategy[Given]:
    """Any request that the model takes."""

    @st.composite
    def made(draw: st.DrawFn) -> Given:
        types = fields(model)
        chosen = {draw(st.sampled_from(group)) for group in model.one_of}
        out = {name for group in model.one_of for name in group} - chosen
        free = sorted(types.keys() - out - chosen - required(model))
        names = required(model) | chosen | draw(st.sets(st.sampled_from(free)) if free else st.just(set()))
        for name, needed in model.needs.items():
            if name in names and needed in out:
                names.discard(name)
        names |= {needed for name, needed in model.needs.items() if name in names}
        return split({name: draw(values(types[name])) for name in sorted(names)})

    return made()


def fields(model: Model[Any, Any]) -> dict[str, inspect.Type]:
    """The model's fields and their types, named as in `one_of`; what is optional without its None."""
    parts = (("input", model.input), ("vendor_input", model.vendor_input))
    return {
        f"{part}.{field.name}": _plain(inspect.type_info(field.type))
        for part, type_ in parts
        for field in msgspec.structs.fields(type_)
    }


def required(model: Model[Any, Any]) -> set[str]:
    parts = (("input", model.input), ("vendor_input", model.vendor_input))
    return {
        f"{part}.{field.name}" for part, type_ in parts for field in msgspec.structs.fields(type_) if field.required
    }


def split(values_: dict[str, Any]) -> Given:
    """Values by `input.…` and `vendor_input.…`, in their two objects."""
    both: Given = ({}, {})
    for name, value in values_.items():
        part, _, field = name.partition(".")
        both[part == "vendor_input"][field] = value
    return both


def values(type_: inspect.Type) -> st.SearchStrategy[Any]:
    """What is of a type."""
    match type_:
        case inspect.LiteralType(values=words):
            return st.sampled_from(words)
        case inspect.IntType(ge=least_, le=most):
            return st.integers(least_, most)
        case inspect.FloatType(gt=above, ge=least_, le=most):
            low = least_ if least_ is not None else above
            return st.floats(low, most or 10, exclude_min=above is not None) | st.integers(1, int(most or 10))
        case inspect.StrType(pattern=str(pattern)) if "http" in pattern:
            return st.sampled_from(URLS)
        case inspect.StrType(pattern=str()):
            return st.text("abc-_019", max_size=8).map("sandbox-{}".format)  # files, faces and sessions that it knows
        case inspect.StrType():
            return st.text(min_size=1, max_size=20)
        case inspect.UnionType(types=types):
            return st.one_of(*map(values, types))
    raise NotImplementedError(f"make up a value of {type_}")


def _examples(model: Model[Any, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, type_ in fields(model).items():
        text = isinstance(type_, inspect.StrType)
        url = isinstance(type_, inspect.StrType) and "http" in (type_.pattern or "")
        named[name] = URLS[0] if url else "sandbox-x" if text else 1
    return named


def _plain(type_: inspect.Type) -> inspect.Type:
    if isinstance(type_, inspect.Metadata):
        return _plain(type_.type)
    if isinstance(type_, inspect.UnionType):
        some = tuple(_plain(one) for one in type_.types if not isinstance(one, inspect.NoneType))
        return some[0] if len(some) == 1 else inspect.UnionType(some)
    return type_
