"""What is shown: a value's MIME bundle, as IPython makes it, and matplotlib's figures."""

import io

BACKEND = "sandbox_inline"

_METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_json_": "application/json",
}


def bundle_of(value):
    """A value's MIME bundle and metadata, as IPython makes it; a method that fails is reported on stderr and left out."""
    data, metadata = {}, {}
    found = _call(value, "_repr_mimebundle_", include=None, exclude=None)
    if isinstance(found, tuple):
        found, metadata = found[0], dict(found[1] or {})
    data.update(found or {})
    for method, mime in _METHODS.items():
        found = None if mime in data else _call(value, method)
        if isinstance(found, tuple):
            found, metadata[mime] = found
        if found is not None:
            data[mime] = found
    if type(value).__module__ == "matplotlib.figure":
        data["image/png"] = png_of(value)
    if "text/plain" not in data:
        data["text/plain"] = repr(value)
    return {mime: as_json(each) for mime, each in data.items()}, metadata


LARGEST = 8 << 20
TOO_LARGE = "(%s: too large to show)"


def fitting(data):
    """The bundle without texts that no front end shows for their size; that one is left out is said."""
    large = [mime for mime, each in data.items() if isinstance(each, str) and len(each) > LARGEST]
    if not large:
        return data
    kept = {mime: each for mime, each in data.items() if mime not in large}
    plain = kept.get("text/plain", data.get("text/plain", "")[:1000])
    return dict(kept, **{"text/plain": "%s %s" % (plain, TOO_LARGE % ", ".join(large))})


def _call(value, name, **arguments):
    method = None if isinstance(value, type) else getattr(type(value), name, None) and getattr(value, name, None)
    if not callable(method):
        return None
    try:
        return method(**arguments)
    except NotImplementedError:
        return None
    except Exception as err:
        import traceback

        traceback.print_exception(type(err), err, err.__traceback__.tb_next)  # without this frame
        return None


def as_json(value):
    """Bytes as base64, all else as it is."""
    if not isinstance(value, (bytes, bytearray, memoryview)):
        return value
    import binascii

    return binascii.b2a_base64(bytes(value), newline=False).decode()


def png_of(figure):
    """A matplotlib figure as PNG bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()


class Backend:
    """Finds matplotlib's backend of our name: Agg, with a `show` that displays (MPLBACKEND=module://sandbox_inline)."""

    def __init__(self, show):
        self._show = show

    def find_spec(self, name, path=None, target=None):
        """Called by import."""
        from importlib.util import spec_from_loader

        return spec_from_loader(name, self) if name == BACKEND else None

    def create_module(self, spec):
        """Called by import: an ordinary module will do."""
        return None

    def exec_module(self, module):
        """Called by import."""
        from matplotlib.backends import backend_agg

        vars(module).update({name: each for name, each in vars(backend_agg).items() if not name.startswith("__")})
        module.FigureCanvas = backend_agg.FigureCanvasAgg
        module.show = lambda *_, **__: self._show()
