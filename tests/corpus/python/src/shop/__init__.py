"""A shop that greets."""

from markupsafe import escape


def greet(name):
    return f"Hello, {escape(name)}!"
