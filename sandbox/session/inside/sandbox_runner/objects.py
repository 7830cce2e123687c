"""Values as bytes, both ways: JSON, .npy, Arrow, text; a pickle only where it was asked for."""

import io
import json


class NotPossible(Exception):
    """An object that cannot travel; the text says why and what else to do."""


def encode(value, arrow, pickled):
    """A value as (description, buffers). `arrow`: the other side reads Arrow; `pickled`: pickle what nothing else can carry."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"kind": "bytes"}, [bytes(value)]
    if type(value) is str:
        return {"kind": "text"}, [value.encode("utf-8", "surrogatepass")]
    family = type(value).__module__.split(".")[0]
    name = type(value).__name__
    if family == "numpy" and not value.dtype.hasobject:
        return {"kind": "npy", "scalar": name != "ndarray"}, [_npy(value)]
    if family == "pandas" and name in ("DataFrame", "Series"):
        return _encode_frame(value, name, arrow, pickled)
    if family == "pyarrow" and name == "Table" and arrow:
        return {"kind": "arrow", "as": "Table"}, [_arrow(value)]
    reason = no_json(value)
    if reason is None:
        return {"kind": "json"}, [json.dumps(value).encode()]
    if pickled:
        import pickle

        return {"kind": "pickle"}, [pickle.dumps(value, protocol=4)]
    raise NotPossible("%s: %s is not JSON, text, an array or a table" % (type(value).__name__, reason))


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


def _npy(value):
    import numpy

    out = io.BytesIO()
    numpy.save(out, numpy.asarray(value), allow_pickle=False)
    return out.getbuffer()


def _arrow(table):
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _encode_frame(value, name, arrow, pickled):
    """Arrow where both sides have it; else each column as .npy or, for texts and missing values, JSON, with its dtype."""
    frame = value if name == "DataFrame" else value.to_frame(name="0" if value.name is None else value.name)
    about = {"as": name, "name": None if name == "DataFrame" else value.name}
    if arrow:
        import pyarrow

        try:
            return dict(about, kind="arrow"), [_arrow(pyarrow.Table.from_pandas(frame))]
        except (pyarrow.ArrowException, TypeError) as err:
            raise NotPossible("%s: %s" % (name, err))
    columns = [frame.index.to_series()] + [frame.iloc[:, place] for place in range(frame.shape[1])]
    described, buffers = zip(*[_encode_column(column, name) for column in columns])
    return dict(about, kind="frame", labels=[str(each) for each in frame.columns], columns=list(described)), list(buffers)


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
    return {"dtype": dtype, "as": "json", "name": column.name}, json.dumps(values).encode()


def decode(about, buffers, pickled):
    """The value again; NotPossible without the library it needs, or for a pickle that is not allowed."""
    kind = about["kind"]
    if kind not in _DECODE or (kind == "pickle" and not pickled):
        raise NotPossible("a value came as %s, which is not accepted" % kind)
    try:
        return _DECODE[kind](about, buffers)
    except ImportError as err:
        raise NotPossible("%s: needs %s, which is not there" % (about.get("name"), err.name))


def _decode_npy(about, buffers):
    import numpy

    value = numpy.load(io.BytesIO(buffers[0]), allow_pickle=False)
    return value[()] if about.get("scalar") else value


def _decode_arrow(about, buffers):
    import pyarrow

    table = pyarrow.ipc.open_stream(pyarrow.py_buffer(buffers[0])).read_all()
    if about["as"] == "Table":
        return table
    return _as_asked(table.to_pandas(), about)


def _decode_frame(about, buffers):
    import pandas

    index, *columns = [_decode_column(pandas, column, data) for column, data in zip(about["columns"], buffers)]
    frame = pandas.DataFrame(dict(enumerate(columns)))
    frame.columns = about["labels"]
    frame.index = pandas.Index(index, name=about["columns"][0]["name"])
    return _as_asked(frame, about)


def _decode_column(pandas, column, data):
    if column["as"] == "json":
        return pandas.Series(json.loads(bytes(data).decode()), dtype=column["dtype"])
    values = _decode_npy({}, [data])
    if column["as"] == "utc":
        zone = column["dtype"].split(", ")[1].rstrip("]")
        return pandas.Series(values).dt.tz_localize("UTC").dt.tz_convert(zone)
    return pandas.Series(values)


def _as_asked(frame, about):
    if about["as"] == "DataFrame":
        return frame
    series = frame.iloc[:, 0]
    series.name = about["name"]
    return series


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
    "pickle": _decode_pickle,
}


def libraries():
    """Which of the libraries that matter for objects this Python has, without importing them."""
    from importlib.util import find_spec

    return [name for name in ("numpy", "pandas", "pyarrow") if find_spec(name)]
