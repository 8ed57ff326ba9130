"""Named tuples that are made quickly: what `typing.NamedTuple` makes, in a fifth of the time.

ktap has some hundred of them, and typing's took a fifth of a start: it writes, compiles and runs the text of a
constructor for each. Here that waits until a class is called for the first time, which few are in one run.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from operator import itemgetter

    try:
        from _collections import _tuplegetter as _getter
    except ImportError:  # another Python than CPython

        def _getter(index: int, doc: str) -> property:
            return property(itemgetter(index), doc=doc)

    _function = type(lambda: None)
    _constructors = {}
    """The code of constructors, by how many fields there are: they differ in the names alone."""

    def _constructor(name: str, fields: tuple[str, ...], defaults: dict[str, object]) -> object:
        """The `__new__` of a class, with parameters that have the names of the fields."""
        code = _constructors.get(len(fields))
        if code is None:
            names = "".join(f"_{number}, " for number in range(len(fields)))
            code = _constructors[len(fields)] = eval(f"lambda _cls, {names}: _new(_cls, ({names}))").__code__
        facts = {"_new": tuple.__new__, "__builtins__": {}, "__name__": f"namedtuple_{name}"}
        made = _function(
            code.replace(co_varnames=("_cls", *fields)), facts, "__new__", tuple(defaults.values()) or None
        )
        made.__qualname__ = f"{name}.__new__"
        return made

    def _make(cls: type, values: object) -> tuple:
        """A tuple of these values."""
        made = tuple.__new__(cls, values)
        if len(made) != len(cls._fields):
            raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
        return made

    def _replace(self: tuple, /, **values: object) -> tuple:
        """The same with other values for some fields."""
        made = self._make(map(values.pop, self._fields, self))
        if values:
            raise ValueError(f"Got unexpected field names: {list(values)!r}")
        return made

    def _asdict(self: tuple) -> dict[str, object]:
        """The values by the names of their fields."""
        return dict(zip(self._fields, self))

    def _repr(self: tuple) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self))
        return f"{self.__class__.__name__}({inner})"

    def _arguments(self: tuple) -> tuple:
        return tuple(self)

    _SHARED = {
        "__slots__": (),
        "_make": classmethod(_make),
        "_replace": _replace,
        "_asdict": _asdict,
        "__repr__": _repr,
        "__getnewargs__": _arguments,
    }

    class _Maker(type):
        """Makes the class of a named tuple from its body."""

        def __new__(maker: type, name: str, bases: tuple[type, ...], body: dict[str, object]) -> type:
            fields = tuple(body.get("__annotations__", ()))
            defaults = {}
            for field in fields:
                if field in body:
                    defaults[field] = body.pop(field)
                elif defaults:
                    raise TypeError(f"field {field} of {name} has no default, others before it have")

            def first(cls: type, /, *values: object, **named: object) -> tuple:
                made = _constructor(name, fields, defaults)
                owner.__new__ = staticmethod(made)
                return made(cls, *values, **named)

            getters = {field: _getter(index, f"Field {field}") for index, field in enumerate(fields)}
            facts = {"_fields": fields, "_field_defaults": defaults, "__match_args__": fields, "__new__": first}
            owner = type(name, (tuple,), {**_SHARED, **getters, **facts, **body})
            return owner

    NamedTuple = type.__new__(_Maker, "NamedTuple", (), {})
