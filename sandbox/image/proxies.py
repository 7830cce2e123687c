"""Which proxy the environment names for a URL (http_proxy, https_proxy, all_proxy, no_proxy), as curl reads them."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping


def proxy_for(url: str, environ: Mapping[str, str]) -> str | None:
    """The proxy the environment names for this URL, its exceptions honoured."""
    parts = urllib.parse.urlsplit(url)
    exceptions = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").replace(" ", "").split(",")
    host = (parts.hostname or "").lower()
    if any(name == "*" or host == name or host.endswith("." + name) for name in (text.lower().lstrip(".") for text in exceptions) if name):
        return None
    # CGI: a client could set HTTP_PROXY by a header, so the upper case of http is not read (as curl does).
    names = [f"{parts.scheme}_proxy", "all_proxy"] if parts.scheme == "http" else ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
    return next((environ[name] for name in names if environ.get(name)), None)
