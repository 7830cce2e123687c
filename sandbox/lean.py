"""msgspec and pathlib without the modules that they import for what we do not use: these take twice as long as msgspec itself.

And `datetime` is the C module that all of it is in, without the same once more in Python.
"""

from __future__ import annotations

import sys
from types import ModuleType

_STAND_INS: dict[str, tuple[str, ...] | None] = {
    "typing_extensions": None,  # optional; with inspect, ast, tokenize and dis
    "uuid": ("UUID", "SafeUUID"),  # with platform
    "decimal": ("Decimal",),
    "msgspec.inspect": (),
    "msgspec._json_schema": ("schema", "schema_components"),
}
"""Modules, and the classes msgspec looks for in them; None: it does without the module."""


def import_lean() -> None:
    """Import them in a process of our own that is over soon. Every module that was kept out can be imported afterwards as ever; only
    msgspec does not know UUID and Decimal."""
    _import_datetime()
    _import_pathlib()
    if "msgspec" in sys.modules:
        return
    made = {name: _stand_in(name, classes) for name, classes in _STAND_INS.items() if name not in sys.modules}
    sys.modules.update(made)  # type: ignore[arg-type]  # None: ImportError, as if it were not installed
    try:
        import msgspec  # noqa: F401
    except (ImportError, AttributeError):  # another version, which wants more: it will be imported as it is
        for name in [name for name in sys.modules if name.partition(".")[0] == "msgspec"]:
            del sys.modules[name]
    finally:
        for name, module in made.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _import_datetime() -> None:
    """As from Python 3.12 on."""
    if "datetime" not in sys.modules and sys.version_info < (3, 12):
        import _datetime  # type: ignore[import-not-found]  # the C module

        sys.modules["datetime"] = _datetime


def _import_pathlib() -> None:
    """Its Path.as_uri quotes by urllib.parse, which comes with ipaddress; until Python 3.13."""
    if "pathlib" in sys.modules or "urllib.parse" in sys.modules or sys.version_info >= (3, 13):
        return

    def quote(*args: bytes) -> str:
        from urllib.parse import quote_from_bytes

        return quote_from_bytes(*args)

    module = ModuleType("urllib.parse")
    module.quote_from_bytes = quote  # type: ignore[attr-defined]
    sys.modules["urllib.parse"] = module
    try:
        import pathlib  # noqa: F401
    finally:
        del sys.modules["urllib.parse"]
        if (package := sys.modules.get("urllib")) is not None and getattr(package, "parse", None) is module:
            del package.parse


def _stand_in(name: str, classes: tuple[str, ...] | None) -> ModuleType | None:
    if classes is None:
        return None
    module = ModuleType(name)
    for each in classes:
        setattr(module, each, type(each, (), {"unknown": None}))
    return module
