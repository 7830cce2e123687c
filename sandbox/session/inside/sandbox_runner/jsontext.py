"""JSON by the interpreter's own C functions: importing `json`, with `re` and `enum`, would cost each fresh cell 4 ms."""


class _Reading:
    """What a C scanner asks of its decoder."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float, parse_int = float, int
    parse_constant = staticmethod(lambda name: float(name.replace("Infinity", "inf")))


def _refuse(value):
    raise TypeError("Object of type %s is not JSON serializable" % type(value).__name__)


def _ours():
    """dumps and loads by C functions; raises what it may where they are not there, or take other arguments."""
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    scan = make_scanner(_Reading)

    def dumps(value):
        return "".join(make_encoder({}, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)(value, 0))

    def loads(text):
        return scan(text, 0)[0]

    tried = {"a": [1, 2.5, None, "\xe9"]}
    if loads(dumps(tried)) != tried:
        raise ValueError("another json")
    return dumps, loads


def _choose():
    try:
        return _ours()
    except Exception:  # PyPy, or a later Python
        import json

        return json.dumps, json.loads


dumps, loads = _choose()
