"""What a container wants shown, made harmless: HTML of known tags as it is, all other HTML in a frame without scripts, SVG as a picture.

JupyterLab trusts what a cell displays, so a container's HTML could run scripts as the notebook's user.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

Bundle = dict[str, Any]  # Any: a MIME bundle, JSON by MIME type

_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_AS_IT_IS = ("text/plain",)
_TAGS = frozenset(
    (
        "a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "details", "div", "dl", "dt", "em",
        "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "samp", "small",
        "span", "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "tt", "u", "ul", "var",
    )
)  # fmt: skip
_SILENT = frozenset(("style", "html", "head", "body", "title"))
"""Dropped without a word: pandas sends a <style> with every table."""
_ATTRIBUTES = frozenset(("align", "alt", "border", "colspan", "height", "rowspan", "scope", "span", "title", "valign", "width"))
_CLASSES = frozenset(("dataframe",))
"""Others belong to the page around: one of them makes a dialog over the whole of it."""
_VOID = frozenset(("br", "col", "hr", "img"))
_LARGEST = 8 << 20
_ROW_HEIGHT, _TALLEST = 24, 600


def harmless(data: Bundle) -> Bundle:
    """The bundle with what is safe to show; other types are left out. Never empty: there is always text/plain."""
    safe: Bundle = {mime: data[mime] for mime in _AS_IT_IS if isinstance(data.get(mime), str)}
    safe.update({mime: data[mime] for mime in _PICTURES if _is_base64(data.get(mime))})
    if "application/json" in data:
        safe["application/json"] = data["application/json"]
    if isinstance(text := data.get("text/latex"), str):
        safe["text/latex"] = _SCRIPT_ADDRESS.sub(r"\1\2 :", text)
    if isinstance(text := data.get("text/markdown"), str):
        safe["text/markdown"] = harmless_markdown(text)
    if isinstance(text := data.get("image/svg+xml"), str):
        safe["text/html"] = svg_picture(text)
    if isinstance(text := data.get("text/html"), str):
        safe["text/html"] = harmless_html(text)
    plain = safe.get("text/plain", "")
    return {**{mime: value for mime, value in safe.items() if len(str(value)) <= _LARGEST}, "text/plain": str(plain)[:_LARGEST]}


def harmless_metadata(metadata: Bundle) -> Bundle:
    """Of pictures their size and background; nothing else has a meaning for what is shown."""
    found = {mime: each for mime, each in metadata.items() if mime in _PICTURES and isinstance(each, dict)}
    return {mime: {name: value for name, value in each.items() if name in _MEANT and _MEANT[name](value)} for mime, each in found.items()}


_MEANT: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("width", "height"), lambda value: type(value) in (int, float) and 0 < value < 100_000),
    "needs_background": lambda value: value in ("light", "dark"),
    "unconfined": lambda value: type(value) is bool,
}


def _is_base64(value: object) -> bool:
    """A picture's data goes into an address as it is, in exported pages too: there must be nothing else in it."""
    return isinstance(value, str) and len(value) <= _LARGEST and _BASE64.fullmatch(value) is not None


_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")


def without_pages(data: Bundle) -> Bundle:
    """What a locked-down cell may show: text and pictures."""
    return {mime: each for mime, each in harmless(data).items() if mime == "text/plain" or mime in _PICTURES}


def harmless_markdown(text: str) -> str:
    """Markdown without HTML, without addresses that run scripts, and with pictures only that need no request.

    Entities go first: behind them the rest could hide (`&#106;avascript:`). A space ends an address, an escaped colon is one too.
    """
    text = _TAG.sub("<\u200b", _ENTITY.sub("&amp;", text))  # no entity: code would show it
    text = _SCRIPT_ADDRESS.sub(r"\1\2 :", text)
    return _PICTURE.sub("! [", text)


_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#|\w+;)")
_SCRIPT_ADDRESS = re.compile(r"(javascript|vbscript|data(?!:image/(?:png|jpeg|gif|webp);base64,))(\\?):", re.IGNORECASE)
_PICTURE = re.compile(r"!\[(?![^\[\]]*\]\(data:image/(?:png|jpeg|gif|webp);base64,)")


def svg_picture(text: str) -> str:
    """An SVG as a picture: browsers run no script and load nothing in an <img>."""
    return f'<img alt="SVG" src="data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}">'


def harmless_html(text: str) -> str:
    """HTML of known tags and attributes only; when it holds more than that, the whole of it in a sandboxed frame."""
    if _is_regular(text):
        cleaner = _Cleaner()
        cleaner.feed(text)
        cleaner.close()
        if not cleaner.dropped:
            return "".join(cleaner.parts)
    return framed(text) + (_NO_SCRIPTS if "<script" in text.lower() else "")


def _is_regular(text: str) -> bool:
    """Whether it is whole tags and text only. Of anything else Python's parser may look for the end anew at each beginning: 40 kB
    of `<a ` take it a minute."""
    place = 0
    while place < len(text):
        found = _PIECE.match(text, place)
        if found is None:
            return False
        place = found.end()
    return True


_PIECE = re.compile(
    r"""[^<]+ | </?[A-Za-z][A-Za-z0-9]*+ (?:\s++[\w:.-]++(?:\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>=`]++))?+)*+ \s*+/?>""", re.VERBOSE
)


_NO_SCRIPTS = (
    '<div style="color:var(--jp-content-font-color2,#777);font-size:90%">'
    "scripts of this page do not run here; written to /out, --save-files keeps it</div>"
)


def framed(text: str) -> str:
    """The HTML in a frame of no origin, without scripts, forms or requests (also through CSS), as tall as its lines suggest."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"
    page = f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="referrer" content="no-referrer">{text}'
    height = min(_TALLEST, 40 + _ROW_HEIGHT * max(1, text.count("<tr"), text.count("\n")))
    return (
        f'<iframe sandbox="" referrerpolicy="no-referrer" class="sandbox-frame" style="border:0;width:100%;height:{height}px" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


class _Cleaner(HTMLParser):
    """Writes known tags again from their parts, and notes whether anything else was there."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.dropped = False
        self._hidden = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        if tag in _TAGS:
            shown = "".join(f' {name}="{html.escape(value or "")}"' for name, value in attrs if self._is_known(tag, name, value or ""))
            self.parts.append(f"<{tag}{shown}>")
        elif tag in _SILENT:
            self._hidden = tag if tag in ("style", "title") else self._hidden
        else:
            self.dropped = True

    def handle_endtag(self, tag: str) -> None:
        """Called by the parser."""
        if tag in _TAGS and tag not in _VOID:
            self.parts.append(f"</{tag}>")
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data: str) -> None:
        """Called by the parser."""
        if not self._hidden:
            self.parts.append(html.escape(data, quote=False))

    def _is_known(self, tag: str, name: str, value: str) -> bool:
        if name in _ATTRIBUTES or (name == "class" and value in _CLASSES):
            return True
        if tag == "img" and name == "src" and value.startswith(tuple(f"data:{mime};base64," for mime in _PICTURES)):
            return True
        if tag == "a" and name == "href" and value.lower().startswith(("https://", "http://")):
            return True
        self.dropped |= name not in ("style", "class", "id", "href", "target", "rel")
        return False
