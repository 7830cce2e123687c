"""What travels between a notebook and a container, and how: the same code encodes and decodes on both sides."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sandbox.session.inside.sandbox_runner import frames, jsontext, objects

FRAME = pd.DataFrame(
    {
        "whole": [1, 2, 3],
        "small": np.array([1, 2, 3], dtype="int8"),
        "real": [1.5, float("nan"), 3.0],
        "yes": [True, False, True],
        "text": ["a", None, "ü"],
        "when": pd.to_datetime(["2026-01-01", None, "2026-03-01"]),
        "zoned": pd.to_datetime(["2026-01-01", "2026-02-01", "2026-03-01"]).tz_localize("Europe/Berlin"),
        "maybe": pd.array([1, None, 3], dtype="Int64"),
    },
    index=pd.Index([10, 20, 30], name="key"),
)


def there_and_back(value: Any, *, arrow: bool = False, pickled: bool = False) -> Any:
    about, buffers = objects.encode(value, arrow, pickled)
    return objects.decode(about, [memoryview(bytes(each)) for each in buffers], pickled)


@pytest.mark.parametrize("value", [None, True, 3, 1.5, "text\ud800", b"\xff\0", [1, [2, {"k": None}]], {"a": []}])
def test_json_text_and_bytes_come_back_as_they_were(value: object) -> None:
    assert there_and_back(value) == value


@pytest.mark.parametrize("dtype", ["int8", "uint64", "float32", "complex128", "bool", "datetime64[ns]", "U3"])
def test_arrays_keep_dtype_and_shape(dtype: str) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    back = there_and_back(array)
    assert back.dtype == array.dtype
    assert back.shape == (2, 3)
    assert (back == array).all()
    assert there_and_back(np.float32(1.5)).dtype == np.float32


@pytest.mark.parametrize("arrow", [False, True])
def test_tables_keep_dtypes_index_and_missing_values(arrow: bool) -> None:
    if arrow:
        pytest.importorskip("pyarrow")
    pd.testing.assert_frame_equal(there_and_back(FRAME, arrow=arrow), FRAME)
    pd.testing.assert_series_equal(there_and_back(FRAME["small"], arrow=arrow), FRAME["small"])
    numbered = pd.DataFrame(np.zeros((2, 3)))
    assert there_and_back(numbered, arrow=arrow).columns.tolist() == [0, 1, 2]


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_travel_as_their_own_memory(order: Any) -> None:
    array = np.asarray(np.arange(40_000).astype("datetime64[s]").reshape(200, 200), order=order)
    about, buffers = objects.encode(array, False, False)
    assert np.shares_memory(np.frombuffer(buffers[1], "u1"), array)
    came = [bytearray(each) for each in buffers]
    back = objects.decode(about, [memoryview(each) for each in came], False)
    assert (back == array).all()
    assert np.shares_memory(back, np.frombuffer(came[1], "u1"))
    back[0, 0] = np.datetime64(5, "s")
    assert (there_and_back(array[::2, ::2]) == array[::2, ::2]).all()
    with pytest.raises(ValueError, match="array"):
        objects.decode(about, [memoryview(came[0]), memoryview(came[1])[:-8]], False)


def test_a_large_array_of_objects_is_refused() -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_2_0(head, {"descr": "|O", "fortran_order": False, "shape": (10_000,)})
    with pytest.raises(ValueError, match="objects"):
        objects.decode({"kind": "npy"}, [memoryview(head.getvalue()), memoryview(bytes(80_000))], True)


@pytest.mark.parametrize(
    "value",
    [
        (1, (2.5, None)),
        {1, 2},
        frozenset(["a"]),
        {(1, 2): [b"raw", {"k": {3}}], None: True},
        [1 + 2j, range(2, 9, 3), Decimal("1.10")],
        (date(2026, 1, 2), time(3, 4, 5, 6), timedelta(1, 2, 3), datetime(2026, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=2)))),
        ["", "surrogate \ud800", float("inf")],
    ],
)
def test_collections_come_back_with_their_types(value: object) -> None:
    back = there_and_back(value)
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, set | frozenset)


def test_arrays_and_tables_inside_collections() -> None:
    back = there_and_back({"a": np.arange(3, dtype="int8"), "rows": [FRAME, (np.float32(2),)]})
    assert back["a"].dtype == np.int8
    assert type(back["rows"][1][0]) is np.float32
    pd.testing.assert_frame_equal(back["rows"][0], FRAME)


def test_a_damaged_tree_or_a_pickle_in_it_is_refused() -> None:
    for tree, error in ([["leaf", 0], frames.NotPossible], [["leaf", 5], KeyError], [["what", 1], KeyError], [7, TypeError]):
        with pytest.raises(error):  # type: ignore[call-overload]
            objects.decode(
                {"kind": "nested", "leaves": [{"kind": "pickle", "first": 0, "count": 1}]}, [memoryview(json.dumps(tree).encode())], True
            )


def _arrow(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


_HONEST = pa.table({"a": [1, 2], "d": pa.array(["x", "y"]).dictionary_encode(), "l": [[1], [2, 3]]})
_OFFSETS = [np.array([0, last, 6], "int32").tobytes() for last in (5, 1 << 30)]
_RUNS = pa.RunEndEncodedArray.from_arrays(pa.array([1 << 20], pa.int32()), pa.array([1]))
UNBELIEVABLE = {
    "compressed": _arrow(pa.table({"z": np.zeros(1 << 20)}), compression="zstd"),
    "compressed dictionary": _arrow(_HONEST, compression="lz4"),
    "nothing, often": _arrow(pa.table({"n": pa.nulls(1 << 28)})),
    "runs": _arrow(pa.table({"r": _RUNS})),
    "outside itself": _arrow(pa.table({"s": ["short", "x"]})).replace(*_OFFSETS),
}


@pytest.mark.parametrize("data", UNBELIEVABLE.values(), ids=UNBELIEVABLE)
def test_tables_that_would_grow_or_point_outside_are_refused(data: bytes) -> None:
    about = {"kind": "arrow", "as": "DataFrame"}
    assert objects.decode(about, [memoryview(_arrow(_HONEST))], False)["d"].tolist() == ["x", "y"]
    with pytest.raises(ValueError, match=r"compressed|more values|run_end|[Oo]ffset|bounds|beyond"):
        objects.decode(about, [memoryview(data)], False)


def test_a_leaf_is_taken_once() -> None:
    about = {"kind": "nested", "leaves": [{"kind": "text", "first": 1, "count": 1}]}
    tree = json.dumps(["list", [["leaf", 0]] * 2]).encode()
    with pytest.raises(KeyError):
        objects.decode(about, [memoryview(tree), memoryview(b"x")], False)


def _own_holder() -> list[object]:
    held: list[object] = []
    held.append(held)
    return held


@pytest.mark.parametrize(
    "value",
    [
        object(),
        [object()],
        _own_holder(),
        np.array([object()]),
        pd.DataFrame({"o": [object()]}),
        datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
    ],
)
def test_what_cannot_travel_is_said(value: object) -> None:
    with pytest.raises(frames.NotPossible):
        objects.encode(value, False, False)


def test_a_category_needs_arrow() -> None:
    with pytest.raises(frames.NotPossible, match="needs pyarrow"):
        objects.encode(pd.DataFrame({"c": pd.Categorical(["a"])}), False, False)


def test_pickle_only_where_both_allow_it() -> None:
    about, buffers = objects.encode(OrderedDict(a=1), False, True)
    assert objects.decode(about, buffers, True) == {"a": 1}
    with pytest.raises(frames.NotPossible, match="not accepted"):
        objects.decode(about, buffers, False)


@pytest.mark.parametrize("value", [{"a": [1, -2.5e300, None, True, "ü\n\x00\ud800"], "": {}}, [], "x", float("inf"), {"é": [[[]]]}])
def test_the_runners_json_is_pythons(value: object) -> None:
    assert jsontext.dumps is not json.dumps
    assert jsontext.dumps(value) == json.dumps(value)
    assert jsontext.loads(json.dumps(value)) == value
    with pytest.raises(TypeError, match="not JSON serializable"):
        jsontext.dumps({"a": object()})
