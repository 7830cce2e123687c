"""Users and groups as an image's own /etc/passwd and /etc/group have them; the host's are never asked."""

from __future__ import annotations

import msgspec

from sandbox.errors import BuildError
from sandbox.image.tree import Tree

_LARGEST_ID = 2**32 - 2


class Account(msgspec.Struct, frozen=True):
    """One line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


def find_account(tree: Tree, user: str) -> Account | None:
    """The account of this name, or else of this uid; None when the image does not know it."""
    accounts = [account for fields in _table(tree, "/etc/passwd", 6) if (account := _account(fields))]
    named = [account for account in accounts if account.name == user]
    return next(iter(named or [account for account in accounts if str(account.uid) == user]), None)


def home_of(tree: Tree, user: str) -> str:
    """The home directory of docker's `user[:group]` (root's when empty); / when the image does not say."""
    account = find_account(tree, user.partition(":")[0] or "0")
    return (account.home if account else "") or "/"


def resolve_owner(tree: Tree, text: str) -> tuple[int, int]:
    """uid and gid of `user[:group]`, names or numbers. A number alone is uid and gid both, a name brings its own group."""
    user, _, group = text.partition(":")
    uid, gid = _user(tree, user) if user else (0, 0)
    return uid, (_group(tree, group) if group else gid)


def _user(tree: Tree, user: str) -> tuple[int, int]:
    if user.isascii() and user.isdigit():
        return _number(user), _number(user)
    account = find_account(tree, user)
    if account is None:
        raise BuildError(f"user {user}: not in the image's /etc/passwd")
    return account.uid, account.gid


def _group(tree: Tree, group: str) -> int:
    if group.isascii() and group.isdigit():
        return _number(group)
    for fields in _table(tree, "/etc/group", 3):
        if fields[0] == group and fields[2].isdigit():
            return int(fields[2])
    raise BuildError(f"group {group}: not in the image's /etc/group")


def _number(text: str) -> int:
    if len(text) > 10 or (number := int(text)) > _LARGEST_ID:
        raise BuildError(f"id {text[:20]}: larger than {_LARGEST_ID}")
    return number


def _table(tree: Tree, path: str, width: int) -> list[list[str]]:
    """The lines of a colon-separated file with at least `width` fields; none when the file is not there."""
    try:
        text = tree.read(path).decode("utf-8", "surrogateescape")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return []
    return [fields for line in text.splitlines() if len(fields := line.split(":")) >= width]


def _account(fields: list[str]) -> Account | None:
    name, _, uid, gid, _, home = fields[:6]
    if not (uid.isascii() and uid.isdigit() and gid.isascii() and gid.isdigit()):
        return None
    return Account(name, int(uid), int(gid), home)
