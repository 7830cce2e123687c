"""`!command`, `x = !command`, `%pip …` and `%matplotlib …` in Python cells that no IPython reads: made plain Python, line for line."""

from __future__ import annotations

import re

_ESCAPED = re.compile(r"^\s*(?:[\w, ]+=\s*)?[!%]", re.MULTILINE)
_SYSTEM = "(lambda text: (__import__('os').system(text), None)[1])("
_OUTPUT = "(lambda text: __import__('subprocess').getoutput(text).splitlines())("
_MAGIC = (
    "(lambda name, text: {'matplotlib': lambda: None, 'pip': lambda: (__import__('os').system("
    "__import__('shlex').quote(__import__('sys').executable) + ' -m pip ' + text), None)[1]}[name]())("
)
_KNOWN = ("matplotlib", "pip")
_CALLS = (("get_ipython().system(", _SYSTEM), ("get_ipython().getoutput(", _OUTPUT))
_LINE_MAGIC = re.compile(r"get_ipython\(\)\.run_line_magic\((?='(?:" + "|".join(_KNOWN) + r")')")


def plain_python(code: str) -> str:
    """The cell as Python understands it. Magics that only an IPython could do stay as they are, and are a SyntaxError there."""
    if not _ESCAPED.search(code):
        return code
    from IPython.core.inputtransformer2 import TransformerManager

    text = TransformerManager().transform_cell(code)
    for call, ours in _CALLS:
        text = text.replace(call, ours)
    text = _LINE_MAGIC.sub(lambda _: _MAGIC, text)
    return code if "get_ipython()" in text else text
