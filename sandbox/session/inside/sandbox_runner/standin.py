"""What cells know from notebooks: `display` with handles, `clear_output`, and IPython.display for images that have no IPython.

Where the image has IPython, its display functions are ours as well: it has no front end there, and would print.
"""

from .bundles import as_json


class Handle:
    """What `display(…, display_id=True)` gives: shows other things in its place."""

    def __init__(self, screen, display_id):
        self._screen, self.display_id = screen, display_id

    def display(self, value, **options):
        """Show it once more, under the same id."""
        self._screen.display(value, display_id=self.display_id, **options)

    def update(self, value, **options):
        """Replace what is shown."""
        self._screen.display(value, display_id=self.display_id, update=True, **options)

    def __repr__(self):
        return "<DisplayHandle display_id=%s>" % self.display_id


class Screen:
    """The display functions. `post`: sends data, metadata and where it belongs; `clear`: clears the cell's output."""

    def __init__(self, bundle_of, post, clear):
        self._bundle_of, self._post, self._clear = bundle_of, post, clear
        self._count = 0

    def display(self, *values, **options):
        """Show values as a notebook does; `raw=True`: each is a MIME bundle already; `display_id=True`: a handle that can update."""
        display_id, update = options.get("display_id"), bool(options.get("update"))
        if display_id is True:
            self._count += 1
            display_id = "%d" % self._count
        for value in values:
            data, metadata = (value, {}) if options.get("raw") else self._bundle_of(value)
            metadata = dict(metadata, **(options.get("metadata") or {}))
            self._post(data, metadata, None if display_id is None else str(display_id), update)
        return Handle(self, str(display_id)) if display_id is not None and not update else None

    def update_display(self, value, **options):
        """Replace what was shown with this `display_id`."""
        self.display(value, **dict(options, update=True))

    def clear_output(self, wait=False):
        """Clear what the cell has shown; `wait`: when there is something new."""
        self._clear(bool(wait))


class Text:
    """IPython.display's HTML, Markdown and the like: a text of one type."""

    mime = "text/plain"
    is_binary = False

    def __init__(self, data=None, url=None, filename=None, **options):
        if filename is not None:
            with open(filename, "rb") as file:
                data = file.read()
        if isinstance(data, bytes) and not self.is_binary:
            data = data.decode("utf-8", "replace")
        self.data, self.url = data, url

    def _repr_mimebundle_(self, include=None, exclude=None):
        shown = self.url if self.data is None else self.data
        name = "<%s>" % type(self).__name__
        plain = shown if self.mime in ("text/markdown", "text/latex") else name
        return {self.mime: as_json(shown), "text/plain": plain}


class Image(Text):
    """A picture: its bytes, or a file."""

    mime = "image/png"
    is_binary = True

    def __init__(self, data=None, url=None, filename=None, format=None, **options):
        if isinstance(data, str):
            data, filename = None, data
        Text.__init__(self, data, url, filename)
        start = (self.data or b"")[:4]
        kind = format or ("jpeg" if start[:2] == b"\xff\xd8" else "gif" if start == b"GIF8" else "png")
        self.mime = "image/%s" % kind.replace("jpg", "jpeg")

    def _repr_mimebundle_(self, include=None, exclude=None):
        if self.data is None:
            return {"text/plain": "<Image %s>" % self.url}
        return Text._repr_mimebundle_(self)


class JSON(Text):
    """A value as JSON."""

    mime = "application/json"

    def __init__(self, data=None, url=None, filename=None, **options):
        self.data, self.url = data, url


_TEXTS = {
    "HTML": "text/html",
    "Markdown": "text/markdown",
    "Latex": "text/latex",
    "Math": "text/latex",
    "SVG": "image/svg+xml",
    "Pretty": "text/plain",
}


class Finder:
    """Finds IPython and IPython.display, the image's own with our functions, or ours; `takers`: others, by name, and what gets the
    module when it has been loaded. First in sys.meta_path."""

    names = ("IPython", "IPython.display", "IPython.core", "IPython.core.display")

    def __init__(self, screen, takers):
        self._screen = screen
        self._takers = takers

    def find_spec(self, name, path=None, target=None):
        """Called by import."""
        take = self._takers.get(name)
        if take is None and name not in self.names:
            return None
        from importlib.machinery import PathFinder
        from importlib.util import spec_from_loader

        found = PathFinder.find_spec(name, path)
        if take is not None:
            if found is not None:
                found.loader = _Patched(found.loader, take)
            return found
        if found is None:
            return spec_from_loader(name, self, is_package=name in ("IPython", "IPython.core"))
        if name.endswith("display") and found.loader is not None:
            found.loader = _Patched(found.loader, self._give)
        return found

    def create_module(self, spec):
        """Called by import: an ordinary module will do."""
        return None

    def exec_module(self, module):
        """Called by import, for a module of ours."""
        module.get_ipython = lambda: None
        module.version_info = (0, 0, 0)
        if module.__name__.endswith("display"):
            for name, mime in _TEXTS.items():
                setattr(module, name, type(name, (Text,), {"mime": mime, "__doc__": "Shown as %s." % mime}))
            module.Image, module.JSON, module.DisplayHandle = Image, JSON, Handle
            self._give(module)

    def _give(self, module):
        module.display, module.update_display = self._screen.display, self._screen.update_display
        module.clear_output = self._screen.clear_output


class _Patched:
    """Another loader, with our functions put over its module."""

    def __init__(self, loader, give):
        self._loader, self._give = loader, give

    def create_module(self, spec):
        """Called by import."""
        return self._loader.create_module(spec)

    def exec_module(self, module):
        """Called by import."""
        self._loader.exec_module(module)
        self._give(module)

    def __getattr__(self, name):
        return getattr(self._loader, name)
