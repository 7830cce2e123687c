"""Values as bytes, both ways: JSON, .npy, Arrow, text, and collections of these; a pickle only where it was asked for."""

import io
import json

from .frames import NotPossible
from .nested import from_tree, to_tree


def encode(value, arrow, pickled):
    """A value as (description, buffers). `arrow`: the other side reads Arrow; `pickled`: pickle what nothing else can carry."""
    try:
        return _encode_whole(value, arrow) or _encode_nested(value, arrow)
    except RecursionError:
        raise NotPossible("it holds itself, or is nested too deeply")
    except NotPossible:
        if not pickled:
            raise
    import pickle

    return {"kind": "pickle"}, [pickle.dumps(value, protocol=4)]


def _encode_whole(value, arrow):
    """A value that is all text, bytes, one array, one table or plain JSON; else None."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"kind": "bytes"}, [bytes(value)]
    if type(value) is str:
        return {"kind": "text"}, [value.encode("utf-8", "surrogatepass")]
    family = type(value).__module__.split(".")[0]
    name = type(value).__name__
    if family == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
        return {"kind": "npy", "scalar": name != "ndarray"}, _npy(value)
    if family == "pandas" and name in ("DataFrame", "Series"):
        return _encode_frame(value, name, arrow)
    if family == "pyarrow" and name == "Table" and arrow:
        return {"kind": "arrow", "as": "Table"}, [_arrow(value)]
    return ({"kind": "json"}, [json.dumps(value).encode()]) if no_json(value) is None else None


def _encode_nested(value, arrow):
    """A collection with more in it than JSON knows."""
    leaves, buffers = [], [b""]

    def leaf(inner):
        found = _encode_whole(inner, arrow)
        if found is None:
            where = "" if inner is value else " in it"
            raise NotPossible("%s%s is neither JSON, text, an array nor a table" % (_what(inner), where))
        leaves.append(dict(found[0], first=len(buffers), count=len(found[1])))
        buffers.extend(found[1])
        return len(leaves) - 1

    buffers[0] = json.dumps(to_tree(value, leaf)).encode()
    return {"kind": "nested", "leaves": leaves}, buffers


def _what(value):
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else "%s.%s" % (kind.__module__, kind.__qualname__)
    return ("an " if name[:1].lower() in "aeiou" else "a ") + name


def no_json(value):
    """What in the value JSON would change or refuse; None when nothing."""
    if value is None or type(value) in (bool, int, float, str):
        return None
    if type(value) is list:
        return next((found for found in map(no_json, value) if found), None)
    if type(value) is dict:
        odd = next((key for key in value if type(key) is not str), None)
        if odd is not None:
            return "a key of type " + type(odd).__name__
        return next((found for found in map(no_json, value.values()) if found), None)
    return type(value).__name__


_ZERO_COPY = 1 << 16
"""Bytes from which an array travels as its own memory."""


def _npy(value):
    """The .npy file of an array; when it is large its head, and then the array's own memory."""
    import numpy

    array, out = numpy.asarray(value), io.BytesIO()
    if array.nbytes < _ZERO_COPY or array.dtype.names:
        numpy.save(out, array, allow_pickle=False)
        return [out.getvalue()]
    about = numpy.lib.format.header_data_from_array_1_0(array)
    numpy.lib.format.write_array_header_2_0(out, about)
    flat = array.reshape(-1, order="F" if about["fortran_order"] else "C")
    return [out.getvalue(), memoryview(flat.view("u1"))]


def _arrow(table):
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _encode_frame(value, name, arrow):
    """Arrow where both sides have it; else each column as .npy or, for texts and missing values, JSON, with its dtype."""
    frame = value if name == "DataFrame" else value.to_frame(name="0" if value.name is None else value.name)
    about = {"as": name, "title": None if name == "DataFrame" else value.name}
    if arrow:
        import pyarrow

        try:
            return dict(about, kind="arrow"), [_arrow(pyarrow.Table.from_pandas(frame))]
        except (pyarrow.ArrowException, TypeError) as err:
            raise NotPossible("%s: %s" % (name, err))
    columns = [frame.index.to_series()] + [frame.iloc[:, place] for place in range(frame.shape[1])]
    described, buffers = [], []
    for column in columns:
        described_column, given = _encode_column(column, name)
        described.append(dict(described_column, first=len(buffers), count=len(given)))
        buffers.extend(given)
    labels = frame.columns.tolist()
    if no_json(labels):
        raise NotPossible("%s: column names of %s need pyarrow on both sides" % (name, no_json(labels)))
    return dict(about, kind="frame", labels=labels, columns=described), buffers


def _encode_column(column, name):
    dtype = str(column.dtype)
    if dtype == "category":
        raise NotPossible("%s: a categorical column needs pyarrow on both sides" % name)
    if getattr(column.dtype, "kind", "O") in "biufcmM" and "numpy" in type(column.dtype).__module__:
        return {"dtype": dtype, "as": "npy", "name": column.name}, _npy(column.to_numpy())
    if dtype.startswith("datetime64"):  # with a time zone: kept as UTC
        return {"dtype": dtype, "as": "utc", "name": column.name}, _npy(column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy())
    values = [None if missing else each for each, missing in zip(column.tolist(), column.isna().tolist())]
    reason = no_json(values)
    if reason:
        raise NotPossible("%s: a column of %s needs pyarrow on both sides" % (name, reason))
    return {"dtype": dtype, "as": "json", "name": column.name}, [json.dumps(values).encode()]


def decode(about, buffers, pickled):
    """The value again; NotPossible without the library it needs, or for a pickle that is not allowed."""
    kind = about["kind"]
    if kind not in _DECODE or (kind == "pickle" and not pickled):
        trust = ": a pickle can run code when it is read; with --trust it is" if kind == "pickle" else ""
        raise NotPossible("a value came as %s, which is not accepted%s" % (kind, trust))
    try:
        return _DECODE[kind](about, buffers)
    except ImportError as err:
        raise NotPossible("needs %s, which is not there" % err.name)


def _decode_npy(about, buffers):
    import numpy

    value = numpy.load(io.BytesIO(buffers[0]), allow_pickle=False) if len(buffers) == 1 else _decode_large(*buffers)
    return value[()] if about.get("scalar") else value


def _decode_large(head, body):
    """An array over the memory it came in: nothing is copied."""
    import numpy

    head = io.BytesIO(head)
    if numpy.lib.format.read_magic(head) != (2, 0):
        raise ValueError("an array of another version")
    shape, fortran, dtype = numpy.lib.format.read_array_header_2_0(head)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    value = numpy.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")
    return value if value.flags.aligned and value.flags.writeable else value.copy()


def _decode_arrow(about, buffers):
    from .arrow import read_table

    table = read_table(buffers[0])
    if about["as"] == "Table":
        return table
    return _as_asked(table.to_pandas(), about)


def _decode_frame(about, buffers):
    import pandas

    index, *columns = [_decode_column(pandas, column, _own(column, buffers)) for column in about["columns"]]
    frame = pandas.DataFrame(dict(enumerate(columns)))
    frame.columns = about["labels"]
    frame.index = pandas.Index(index, name=about["columns"][0]["name"])
    return _as_asked(frame, about)


def _own(about, buffers):
    return buffers[about["first"] : about["first"] + about["count"]]


def _decode_column(pandas, column, buffers):
    if column["as"] == "json":
        return pandas.Series(json.loads(bytes(buffers[0]).decode()), dtype=column["dtype"])
    values = _decode_npy({}, buffers)
    if column["as"] == "utc":
        zone = column["dtype"].split(", ")[1].rstrip("]")
        return pandas.Series(values).dt.tz_localize("UTC").dt.tz_convert(zone)
    return pandas.Series(values)


def _as_asked(frame, about):
    if about["as"] == "DataFrame":
        return frame
    series = frame.iloc[:, 0]
    series.name = about["title"]
    return series


def _decode_nested(about, buffers):
    leaves = dict(enumerate(about["leaves"]))

    def leaf(number):
        inner = leaves.pop(number)  # each once: or few bytes could stand for many
        if inner["kind"] == "nested":
            raise ValueError("a tree in a tree")
        return decode(inner, _own(inner, buffers), False)

    return from_tree(json.loads(bytes(buffers[0]).decode()), leaf)


def _decode_pickle(about, buffers):
    import pickle

    return pickle.loads(buffers[0])


_DECODE = {
    "bytes": lambda about, buffers: bytes(buffers[0]),
    "text": lambda about, buffers: bytes(buffers[0]).decode("utf-8", "surrogatepass"),
    "json": lambda about, buffers: json.loads(bytes(buffers[0]).decode()),
    "npy": _decode_npy,
    "arrow": _decode_arrow,
    "frame": _decode_frame,
    "nested": _decode_nested,
    "pickle": _decode_pickle,
}


def libraries():
    """Which of the libraries that matter for objects this Python has, without importing them."""
    from importlib.util import find_spec

    return [name for name in ("numpy", "pandas", "pyarrow") if find_spec(name)]
