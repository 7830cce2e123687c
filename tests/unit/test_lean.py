"""What a short command keeps out of its way is there for whoever asks for it later."""

from __future__ import annotations

import subprocess
import sys

import pytest

AFTER = {
    "uuid": "import uuid; assert uuid.uuid4().version == 4",
    "decimal": "import decimal; assert decimal.Decimal('1.5') * 2 == 3",
    "inspect": "import inspect; assert inspect.signature(len)",
    "typing_extensions": "import typing_extensions; assert typing_extensions.TypedDict",
    "msgspec.inspect": "import msgspec.inspect; assert msgspec.inspect.type_info(int)",
    "urllib.parse": "import urllib.parse; assert urllib.parse.quote('a b') == 'a%20b'",
    "datetime": "import datetime, pickle; assert pickle.loads(pickle.dumps(datetime.datetime.strptime('2001', '%Y'))).year == 2001",
    "pathlib": "import pathlib; assert pathlib.Path('/a b').as_uri() == 'file:///a%20b'",
    "the engine": "import sandbox.engine, sandbox.build.builder, sandbox.image.registry.pulling",
}


def lean(code: str) -> subprocess.CompletedProcess[str]:
    begin = "import sys; from sandbox import lean; lean.import_lean()\n"
    return subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", AFTER)
def test_what_was_kept_out_can_be_imported(name: str) -> None:
    done = lean(AFTER[name])
    assert done.returncode == 0, done.stderr


def test_it_is_kept_out() -> None:
    done = lean("print({'uuid', 'decimal', 'inspect', 'typing_extensions', 'msgspec.inspect', 'urllib.parse'} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


def test_an_msgspec_that_wants_more_is_imported_as_it_is() -> None:
    done = lean("pass")
    assert done.returncode == 0
    code = (
        "import sys; from sandbox import lean; lean._STAND_INS['uuid'] = ()\n"  # without its classes msgspec cannot be imported
        "lean.import_lean(); import msgspec, uuid\n"
        "assert msgspec.json.decode(b'\"12345678-1234-5678-1234-567812345678\"', type=uuid.UUID).int\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_decodes_as_ever() -> None:
    done = lean("import msgspec; print(msgspec.json.decode(b'[1, 2.5]', type=list[float]), msgspec.json.encode({'a': None}))")
    assert done.stdout == "[1.0, 2.5] b'{\"a\":null}'\n", done.stderr
