"""Collections JSON cannot say: tuples, sets, keys of any kind, dates, and arrays or tables inside lists and dicts.

Such a value is a tree of [kind, content]; whatever has bytes of its own is a leaf and names its buffers.
"""

import datetime
import decimal

from .frames import NotPossible


def to_tree(value, leaf):
    """The tree of a value; `leaf(value)` gives the number of a value that is neither a collection nor JSON, or raises NotPossible."""
    kind = type(value)
    if value is None or kind in (bool, int, float):
        return ["", value]
    if kind in _MANY:
        return [_MANY[kind], [to_tree(each, leaf) for each in value]]
    if kind is dict:
        return ["dict", [[to_tree(key, leaf), to_tree(each, leaf)] for key, each in value.items()]]
    if kind in _WRITE:
        return [kind.__name__, _WRITE[kind](value)]
    return ["leaf", leaf(value)]


def from_tree(tree, leaf):
    """The value again; `leaf(number)` gives the leaves. Raises whatever the wrong shape of a tree makes Python raise."""
    kind, content = tree
    if kind == "":
        return content
    if kind == "dict":
        return {from_tree(key, leaf): from_tree(each, leaf) for key, each in content}
    if kind == "leaf":
        return leaf(content)
    if kind in _READ_MANY:
        return _READ_MANY[kind]([from_tree(each, leaf) for each in content])
    return _READ[kind](content)


_MANY = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_READ_MANY = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def _zone(value):
    """Seconds east of UTC; None without a time zone. A named zone has rules that a number cannot say."""
    if value.tzinfo is None:
        return None
    if type(value.tzinfo) is not datetime.timezone:
        raise NotPossible("a time in the zone %s: only UTC and fixed offsets can travel" % value.tzinfo)
    return value.utcoffset().total_seconds()


def _as_zone(seconds):
    return None if seconds is None else datetime.timezone(datetime.timedelta(seconds=seconds))


_WRITE = {
    complex: lambda value: [value.real, value.imag],
    range: lambda value: [value.start, value.stop, value.step],
    decimal.Decimal: str,
    datetime.date: lambda value: [value.year, value.month, value.day],
    datetime.time: lambda value: [value.hour, value.minute, value.second, value.microsecond, _zone(value)],
    datetime.datetime: lambda value: [*value.timetuple()[:6], value.microsecond, _zone(value)],
    datetime.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
}

_READ = {
    "complex": lambda content: complex(*content),
    "range": lambda content: range(*content),
    "Decimal": decimal.Decimal,
    "date": lambda content: datetime.date(*content),
    "time": lambda content: datetime.time(*content[:4], tzinfo=_as_zone(content[4])),
    "datetime": lambda content: datetime.datetime(*content[:7], tzinfo=_as_zone(content[7])),
    "timedelta": lambda content: datetime.timedelta(*content),
}
