"""What is asked between cells: completion, inspection, whether a cell is whole. Loaded when first asked for."""

import _ast
import builtins
import codeop
import inspect
import io
import keyword
import os
import re
import tokenize

_NAME = re.compile(r"((?:[^\W\d]\w*\s*\.\s*)*)([^\W\d]\w*)?\Z")
_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]*)|import\s+(?:[\w.]+\s*(?:as\s+\w+)?,\s*)*([\w.]*))\Z")
_FROM = re.compile(r"^\s*from\s+([\w.]+)\s+import\s+\(?(?:[\w*]+\s*(?:as\s+\w+)?,\s*)*(\w*)\Z")
_STRING = re.compile(r"""(?:^|[^\w])[rbuf]{0,2}(["'])((?:(?!\1)[^\\\n])*)\Z""", re.IGNORECASE)
_MOST = 1000


def complete(namespace, code):
    """What may stand at the end of `code`: the word there, and [text, type] of what it can become."""
    line = code.rpartition("\n")[2]
    for pattern, answer in ((_FROM, _members), (_IMPORT, _modules), (_STRING, _files)):
        found = pattern.search(line)
        if found:
            return answer(found)
    owner, word = _NAME.search(line).groups()
    word = word or ""
    if owner:
        value, known = _value(namespace, [each.strip() for each in owner.split(".") if each.strip()])
        return _sorted(word, _attributes(value, word) if known else [])
    if line[: len(line) - len(word)].rstrip().endswith("."):  # of something that would have to be called first
        return _sorted(word, [])
    return _sorted(word, _names(namespace, word) + _arguments(namespace, code, word))


def _sorted(word, found):
    hidden = [each for each in found if each[0].startswith(word) and (word.startswith("_") or not each[0].startswith("_"))]
    return {"word": word, "matches": sorted(map(list, set(map(tuple, hidden))))[:_MOST]}


def _names(namespace, word):
    known = dict(vars(builtins), **namespace)
    return [(name, "keyword") for name in keyword.kwlist] + [(name, kind_of(known[name])) for name in known if name.startswith(word)]


def _attributes(value, word):
    found = []
    for name in dir(value):
        if isinstance(name, str) and name.startswith(word):
            try:
                static = inspect.getattr_static(value, name)
            except AttributeError:
                static = None
            found.append((name, "property" if isinstance(static, property) else kind_of(static)))
    return found


def _arguments(namespace, code, word):
    """`name=` of the function whose call is open at the end."""
    call = open_call(code)
    value, known = _value(namespace, call.split(".")) if call else (None, False)
    try:
        parameters = inspect.signature(value).parameters.values() if known and callable(value) else ()
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [(each.name + "=", "param") for each in parameters if each.kind in named and each.name.startswith(word)]


def _modules(found):
    import pkgutil
    import sys

    path, _, word = (found.group(1) or found.group(2) or "").rpartition(".")
    places = getattr(sys.modules.get(path), "__path__", []) if path else None
    names = {each.name for each in pkgutil.iter_modules(places)} | set(() if path else sys.builtin_module_names)
    return _sorted(word, [(name, "module") for name in names])


def _members(found):
    import importlib
    import pkgutil
    import sys

    try:
        module = sys.modules.get(found.group(1)) or importlib.import_module(found.group(1))
    except Exception:
        return _sorted(found.group(2), [])
    inner = [(each.name, "module") for each in pkgutil.iter_modules(getattr(module, "__path__", []))]
    return _sorted(found.group(2), _attributes(module, found.group(2)) + inner)


def _files(found):
    place, _, word = found.group(2).rpartition("/")
    directory = os.path.expanduser(place or ("/" if found.group(2).startswith("/") else "."))
    try:
        entries = list(os.scandir(directory))
    except OSError:
        entries = []
    return _sorted(word, [(each.name + ("/" if each.is_dir() else ""), "path") for each in entries])


def _value(namespace, names):
    """What a dotted name stands for, and whether it is known. Nothing is called but attributes' own code."""
    try:
        value = namespace[names[0]] if names[0] in namespace else getattr(builtins, names[0])
        for name in names[1:]:
            value = getattr(value, name)
    except Exception:
        return None, False
    return value, True


def kind_of(value):
    """The kind of thing, in the words front ends have icons for."""
    if inspect.ismodule(value):
        return "module"
    if inspect.isclass(value):
        return "class"
    return "function" if callable(value) or isinstance(value, (staticmethod, classmethod)) else "instance"


def open_call(code):
    """The dotted name of the innermost call that is open at the end of the code; empty when there is none."""
    stack, name, last = [], "", ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.string in ("(", "[", "{"):
                stack.append(name if token.string == "(" else "")
            elif token.string in (")", "]", "}") and stack:
                stack.pop()
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                name = name + token.string if last == "." else token.string
            elif token.string == "." and last not in (")", "]"):
                name += "."
            elif token.string.strip():
                name = ""
            last = token.string
    except (tokenize.TokenError, SyntaxError, IndentationError):
        pass  # it is not whole: that is why we are asked
    return stack[-1] if stack else ""


def describe(namespace, name, detail):
    """The help for a dotted name, as IPython's: {} when it is not known."""
    value, known = _value(namespace, name.split(".")) if name else (None, False)
    if not known:
        return {}
    parts = [("Signature", _signature(name, value)), ("Type", type(value).__name__)]
    if not callable(value) and not inspect.ismodule(value):
        parts.append(("String form", _short(str(value))))
    parts.append(("File", _call(inspect.getfile, value)))
    source = _call(inspect.getsource, value) if detail else ""
    parts.append(("Source", source) if source else ("Docstring", _call(inspect.getdoc, value)))
    return {"text": "\n".join("%s:%s%s" % (head, "\n" if "\n" in text else " ", text) for head, text in parts if text)}


def _signature(name, value):
    return name.rpartition(".")[2] + _call(lambda each: str(inspect.signature(each)), value) if callable(value) else ""


def _call(function, value):
    try:
        return function(value) or ""
    except (OSError, TypeError, ValueError):
        return ""


def _short(text):
    return text if len(text) <= 1000 else text[:1000] + "…"


def parse(code):
    """Whether a cell is `complete`, `incomplete` (then with the next line's indent) or `invalid`."""
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= getattr(_ast, "PyCF_ALLOW_TOP_LEVEL_AWAIT", 0)
    try:
        whole = compiler(code, "<cell>", "exec")
    except (SyntaxError, ValueError, OverflowError):
        return {"state": "invalid"}
    last = code.rstrip(" \t").rpartition("\n")[2]
    space = last[: len(last) - len(last.lstrip())]
    if whole is None:
        return {"state": "incomplete", "indent": space + ("    " if last.rstrip().endswith(":") else "")}
    return {"state": "incomplete", "indent": space} if space and last.strip() else {"state": "complete"}
