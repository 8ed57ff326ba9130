"""Plain data (named tuples of numbers, text, bytes, tuples, mappings) as JSON, checked against its types when read.

    text = to_plain(value)                # what json.dumps takes
    value = from_plain(Layout, text)      # raises Malformed unless it is a Layout all through

A named tuple becomes a list of its class's name and its fields; where a field may be of several classes
the name says of which. Bytes become text by latin-1.
"""

from __future__ import annotations

import typing
from functools import cache
from typing import Callable, Dict, Mapping, Tuple, Type, TypeVar, Union, cast

MOST_DEPTH = 60
"""Data within data; an expression of a script's address is at most 8 deep."""

T = TypeVar("T")


class Malformed(Exception):
    """Not the data that was expected."""


def to_plain(value: object) -> object:
    """What stands for a value in JSON."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [to_plain(item) for item in value]
        return [type(value).__name__, *items] if hasattr(value, "_fields") else items
    raise TypeError(f"{type(value).__name__} is no plain data")


def from_plain(kind: Type[T], data: object) -> T:
    """The value that JSON stands for. Raises Malformed."""
    return cast(T, _read(kind, data, 0))


@cache
def _hints(kind: type) -> Dict[str, object]:
    return typing.get_type_hints(kind)


def _read(kind: object, data: object, depth: int) -> object:
    if depth > MOST_DEPTH:
        raise Malformed("data nested too deep")
    origin = typing.get_origin(kind)
    if origin is Union:
        return _read_union(typing.get_args(kind), data, depth)
    if origin is tuple:
        return _read_tuple(typing.get_args(kind), data, depth)
    if origin is not None:  # Mapping[str, …]
        value_kind = typing.get_args(kind)[1]
        if not isinstance(data, dict):
            raise Malformed("no mapping")
        return {key: _read(value_kind, item, depth + 1) for key, item in data.items()}
    if _fields(kind):
        return _read_named(kind, data, depth)
    if kind is bytes:
        return _bytes(data)
    if type(data) is not (type(None) if kind is None else kind):
        raise Malformed(f"no {getattr(kind, '__name__', kind)}")
    return data


def _bytes(data: object) -> bytes:
    if not isinstance(data, str):
        raise Malformed("no bytes")
    try:
        return data.encode("latin-1")
    except UnicodeEncodeError as error:
        raise Malformed("no bytes") from error


def _read_union(kinds: Tuple[object, ...], data: object, depth: int) -> object:
    if isinstance(data, list) and data and isinstance(data[0], str):
        for kind in kinds:
            if _fields(kind) and getattr(kind, "__name__", "") == data[0]:
                return _read_named(kind, data, depth)
    for kind in kinds:
        if not _fields(kind):
            try:
                return _read(kind, data, depth + 1)
            except Malformed:
                continue
    raise Malformed("data of none of the kinds that are expected")


def _read_tuple(kinds: Tuple[object, ...], data: object, depth: int) -> Tuple[object, ...]:
    if not isinstance(data, list):
        raise Malformed("no list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple([_read(kinds[0], item, depth + 1) for item in data])
    if len(kinds) != len(data):
        raise Malformed("a list of another length")
    return tuple([_read(kind, item, depth + 1) for kind, item in zip(kinds, data)])


def _read_named(kind: object, data: object, depth: int) -> object:
    make = cast("Callable[..., object]", kind)
    fields, name = _fields(kind), getattr(kind, "__name__", "")
    if not isinstance(data, list) or len(data) != 1 + len(fields) or data[0] != name:
        raise Malformed(f"no {name}")
    hints = _hints(cast(type, kind))
    return make(*(_read(hints[field], item, depth + 1) for field, item in zip(fields, data[1:])))


def _fields(kind: object) -> Tuple[str, ...]:
    """The fields of a class of named tuples, none for any other."""
    return cast("Tuple[str, ...]", getattr(kind, "_fields", ()))
