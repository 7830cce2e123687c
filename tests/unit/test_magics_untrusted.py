"""What a container shows cannot run scripts in the notebook's page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from magics.outfiles import bundle_of, out_files, save_file
from magics.untrusted import harmless, harmless_html, harmless_metadata, without_pages

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
    assert harmless({"text/markdown": "<script>x</script>"})["text/markdown"] == "<\u200bscript>x<\u200b/script>"
    assert without_pages({"text/html": "<b>x</b>", "image/png": "aa", "text/plain": "x"}) == {"text/plain": "x", "image/png": "aa"}


@pytest.mark.parametrize("piece", ["<!--", "<a ", "<a b='", "<a b=", "<?", "</", "<![CDATA[", "<a/", "<a b ", "<table><"])
def test_html_that_parsers_dislike_is_framed_at_once(piece: str) -> None:
    assert harmless_html(piece * 100_000).startswith('<iframe sandbox="" ')  # minutes, were it cleaned


def test_classes_of_the_page_around_are_not_for_a_container() -> None:
    assert harmless_html('<p class="jp-Dialog">log in<b class="dataframe">x</b></p>') == '<p>log in<b class="dataframe">x</b></p>'


def test_a_pictures_data_is_base64_and_its_metadata_are_its_size() -> None:
    assert harmless({"image/png": 'aa"><script>alert(1)</script>', "text/plain": "x"}) == {"text/plain": "x"}
    assert harmless({"image/png": "aGk=\n"}) == {"text/plain": "", "image/png": "aGk=\n"}
    given = {"image/png": {"width": 10, "height": "x", "needs_background": "light", "onload": "alert(1)"}, "text/html": {"isolated": False}}
    assert harmless_metadata(given) == {"image/png": {"width": 10, "needs_background": "light"}}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a < b && c <= d", "a < b && c <= d"),
        ("[x](javascript:alert(1))", "[x](javascript :alert(1))"),
        ("[x]( JavaScript:alert(1))", "[x]( JavaScript :alert(1))"),
        ("[x](javascript\\:alert(1))", "[x](javascript\\ :alert(1))"),
        ("[x](&#106;avascript:alert(1))", "[x](&amp;#106;avascript:alert(1))"),
        ("[x](javascript&colon;alert(1))", "[x](javascript&amp;colon;alert(1))"),
        ("[x]: data:text/html,1", "[x]: data :text/html,1"),
        ("<javascript:alert(1)>", "<\u200bjavascript :alert(1)>"),
        ("![x](https://x/pixel.png)", "! [x](https://x/pixel.png)"),
        ("![x][1]", "! [x][1]"),
        ("![x](data:image/png;base64,aa)", "![x](data:image/png;base64,aa)"),
        ("[x](https://x/)", "[x](https://x/)"),
    ],
)
def test_markdown_runs_nothing_and_asks_nobody(text: str, shown: str) -> None:
    assert harmless({"text/markdown": text})["text/markdown"] == shown


def test_a_page_says_that_its_scripts_do_not_run() -> None:
    assert "scripts of this page do not run" in harmless_html("<b>x</b><script>1</script>")
    assert "scripts of this page" not in harmless_html("<video></video>")


def test_large_files_are_saved_and_a_table_of_rubbish_is_text(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / "large.csv").open("wb") as file:
        file.truncate(20 << 20)
    (out / "odd.csv").write_bytes(b'"' + b"x" * 200_000)
    (out / "t.tsv").write_text("a\tb\n")
    shown = {}
    for file in out_files(out):
        shown[file.path] = bundle_of(file)
        save_file(file, str(tmp_path / "saved"))
    assert (tmp_path / "saved/large.csv").stat().st_size == 20 << 20
    assert shown["large.csv"] == {"text/plain": "/out/large.csv (20971520 bytes)"}
    assert set(shown["odd.csv"]) == {"text/plain"}
    assert "<th>b</th>" in shown["t.tsv"]["text/html"]


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
    for file in out_files(out):
        save_file(file, str(tmp_path / "saved"))
    saved = {str(each.relative_to(tmp_path / "saved")) for each in (tmp_path / "saved").rglob("*") if each.is_file()}
    assert saved == {"sub/p.png", "t.csv", "x.bin"}
    assert not any("canary" in each.read_text(errors="replace") for each in (tmp_path / "saved").rglob("*") if each.is_file())
