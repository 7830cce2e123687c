"""Arrow's stream format, read as data of somebody else's: nothing in it may cost more memory than it has bytes, or point outside itself."""

import struct

_EXPANDING = ("run_end_encoded", "list_view", "large_list_view")
"""Types by which few bytes stand for many values; pandas writes none of them."""


def read_table(data):
    """The table; ValueError (pyarrow's ArrowInvalid is one) when it is not to be believed."""
    import pyarrow

    buffer = pyarrow.py_buffer(data)
    reader = pyarrow.ipc.MessageReader.open_stream(buffer)
    for message in reader:
        if message.type in ("record batch", "dictionary") and _is_compressed(bytes(message.metadata)):
            raise ValueError("a compressed table")
    table = pyarrow.ipc.open_stream(buffer).read_all()
    for field in table.schema:
        _check_type(field.type)
    if table.num_rows * max(1, table.num_columns) > max(10000000, 8 * len(data)):
        raise ValueError("a table of more values than bytes")
    table.validate(full=True)
    return table


def _check_type(kind):
    if str(kind).startswith(_EXPANDING):
        raise ValueError("a column of type %s" % kind)
    for number in range(kind.num_fields):
        _check_type(kind.field(number).type)


def _is_compressed(metadata):
    """Whether the record batch of a message has a codec (Message.fbs: header type, header; RecordBatch's field 3, DictionaryBatch's 1)."""
    message = struct.unpack_from("<I", metadata, 0)[0]
    kind, header = _field(metadata, message, 1), _field(metadata, message, 2)
    if not kind or not header:
        raise ValueError("a message without a header")
    batch = _target(metadata, header)
    if metadata[kind] == 2:  # a dictionary: its batch is a field
        batch = _target(metadata, _field(metadata, batch, 1))
    return bool(_field(metadata, batch, 3))


def _field(metadata, table, number):
    """Where a flatbuffers table has its field; 0 when it has it not."""
    names = table - struct.unpack_from("<i", metadata, table)[0]
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", metadata, names)[0]:
        return 0
    offset = struct.unpack_from("<H", metadata, names + place)[0]
    return table + offset if offset else 0


def _target(metadata, place):
    return place + struct.unpack_from("<I", metadata, place)[0]
