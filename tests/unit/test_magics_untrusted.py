"""What a container shows cannot run scripts in the notebook's page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from magics.outfiles import bundle_of, out_files, save_files
from magics.untrusted import harmless, harmless_html, without_pages

_TABLE = '<div><style scoped>.x{}</style><table border="1" class="dataframe"><thead><tr><th>a</th></tr></thead></table></div>'


def test_a_table_is_shown_as_it_is() -> None:
    assert harmless_html(_TABLE) == '<div><table border="1" class="dataframe"><thead><tr><th>a</th></tr></thead></table></div>'


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<b onmouseover='alert(1)'>x</b>",
        "<iframe src='https://x'></iframe>",
        "<svg onload=alert(1)>",
        "<form action=//x><button>",
        "<meta http-equiv=refresh content='0;url=https://x'>",
        "<img src='https://x/pixel.png'>",
    ],
)
def test_anything_else_is_put_into_a_frame_without_scripts(text: str) -> None:
    shown = harmless_html(text)
    assert shown.startswith('<iframe sandbox="" ')
    assert "default-src &#x27;none&#x27;" in shown
    assert "<script" not in shown
    assert "allow-" not in shown


def test_links_of_other_kinds_are_dropped() -> None:
    assert harmless_html('<a href="javascript:alert(1)">x</a>') == "<a>x</a>"
    assert harmless_html('<a href="https://x/">x</a>') == '<a href="https://x/">x</a>'
    assert harmless_html("&lt;script&gt;") == "&lt;script&gt;"


def test_unknown_types_are_left_out_and_svg_is_a_picture() -> None:
    shown = harmless({"application/javascript": "alert(1)", "image/svg+xml": "<svg onload='x'/>", "application/vnd.vegalite.v5+json": {}})
    assert set(shown) == {"text/plain", "text/html"}
    assert shown["text/html"].startswith('<img alt="SVG" src="data:image/svg+xml;base64,')
    assert harmless({"text/markdown": "<script>x</script>"})["text/markdown"] == "&lt;script>x&lt;/script>"
    assert without_pages({"text/html": "<b>x</b>", "image/png": "aa", "text/plain": "x"}) == {"text/plain": "x", "image/png": "aa"}


def test_files_of_out_are_shown_by_type_and_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("canary")
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "t.csv").write_text("a,b\n1,<2>\n")
    (out / "sub/p.png").write_bytes(b"PNG")
    (out / "x.bin").write_bytes(b"\0")
    (out / "link.txt").symlink_to(secret)
    (out / "dir").symlink_to(tmp_path)
    os.mkfifo(out / "pipe.txt")
    shown = {file.path: bundle_of(file) for file in out_files(out)}
    assert set(shown) == {"sub/p.png", "t.csv", "x.bin"}
    assert shown["t.csv"]["text/html"] == "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>&lt;2&gt;</td></tr></table>"
    assert shown["sub/p.png"]["image/png"] == "UE5H"
    assert shown["x.bin"] == {"text/plain": "/out/x.bin (1 bytes)"}
    assert save_files(list(out_files(out)), str(tmp_path / "saved")) == ["sub/p.png", "t.csv", "x.bin"]
    assert not any("canary" in each.read_text(errors="replace") for each in (tmp_path / "saved").rglob("*") if each.is_file())
