"""What travels between a notebook and a container, and how: the same code encodes and decodes on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sandbox.session.inside.sandbox_runner import objects

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


@pytest.mark.parametrize("value", [{1}, (1, 2), {1: "a"}, object(), np.array([object()]), pd.DataFrame({"o": [object()]})])
def test_what_cannot_travel_is_said(value: object) -> None:
    with pytest.raises(objects.NotPossible):
        objects.encode(value, False, False)


def test_a_category_needs_arrow() -> None:
    with pytest.raises(objects.NotPossible, match="needs pyarrow"):
        objects.encode(pd.DataFrame({"c": pd.Categorical(["a"])}), False, False)


def test_pickle_only_where_both_allow_it() -> None:
    about, buffers = objects.encode({1, 2}, False, True)
    assert objects.decode(about, buffers, True) == {1, 2}
    with pytest.raises(objects.NotPossible, match="not accepted"):
        objects.decode(about, buffers, False)
