"""This host's extra certificate authorities for a container: what a campus or company adds, so that its proxies and servers are trusted.

A bundle is made of the image's own and the host's additions, and mounted read-only in the container's /dev: nothing of it can be in a
layer. Programs find it by the variables they know (OpenSSL, requests, pip, Node.js, curl, git, AWS; apt through a file of its own).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from sandbox.runtime.spec import Mount

TARGET = "/dev/host-ca"
PLACES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Arch, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine
)
"""Where distributions keep what they trust, as one file."""
_ADDED = (
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/source/anchors",
    "/etc/pki/trust/anchors",
    "/etc/ca-certificates/trust-source/anchors",
)
"""Where an administrator adds to that."""
_NAMES = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE",
)  # fmt: skip
VARIABLES: Mapping[str, str] = {**dict.fromkeys(_NAMES, f"{TARGET}/bundle.pem"), "APT_CONFIG": f"{TARGET}/apt.conf"}
"""What a program's environment gets: see `with_variables`."""
_APT = f'Acquire::https::CAInfo "{TARGET}/bundle.pem";\n'
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def added(environ: Mapping[str, str] = os.environ, host: Path = Path("/")) -> tuple[bytes, ...]:
    """The authorities this host trusts beside its distribution's: its administrator's, and those of SSL_CERT_FILE."""
    files = [path for place in _ADDED for path in sorted((host / place[1:]).rglob("*")) if path.suffix in (".crt", ".pem", ".cer")]
    if named := environ.get("SSL_CERT_FILE"):
        files.append(Path(named))
    return tuple(dict.fromkeys(each for file in files for each in _certificates(_read(file))))


def trusted(read: Callable[[str], bytes]) -> bytes:
    """All that a distribution trusts, whose files `read` gives; empty when it keeps that nowhere we know."""
    for place in PLACES:
        with contextlib.suppress(OSError):
            return read(place)
    return b""


def deliver(root: Path, own: bytes, more: Iterable[bytes]) -> Path:
    """A directory below `root` with the bundle of the image's `own` text and `more` authorities; `own` empty: this host's."""
    bundle = _bundle([*_certificates(own or trusted(lambda place: Path(place).read_bytes())), *more])
    place = root / "host-ca" / hashlib.sha256(bundle).hexdigest()[:32]
    if not place.exists():
        fresh = place.with_name(f".{place.name}.{os.urandom(4).hex()}")  # steps of one build come here at once
        fresh.mkdir(parents=True)
        for name, data in (("bundle.pem", bundle), ("apt.conf", _APT.encode())):
            (fresh / name).write_bytes(data)
            (fresh / name).chmod(0o444)
        fresh.chmod(0o755)
        try:
            fresh.rename(place)
        except OSError:  # another one was quicker, with the same content
            for path in fresh.iterdir():
                path.unlink()
            fresh.rmdir()
    return place


def mount(place: Path) -> Mount:
    """What `deliver` made, as a container sees it."""
    return Mount("bind", TARGET, str(place), read_only=True)


def with_variables(env: Mapping[str, str]) -> dict[str, str]:
    """A program's environment with ours. What it says itself wins, unless that is a distribution's file: ours has all of that."""
    return {**VARIABLES, **{name: value for name, value in env.items() if not (name in VARIABLES and value in PLACES)}}


def is_ours(value: str) -> bool:
    """Whether a variable's value is one that came from us: an image must not keep it."""
    return value.startswith(f"{TARGET}/")


def _certificates(text: bytes) -> Iterator[bytes]:
    """Their base64, without line ends: one certificate is written in more than one way."""
    return (b"".join(found.split()) for found in _CERTIFICATE.findall(text))


def _bundle(certificates: Iterable[bytes]) -> bytes:
    blocks = (b"\n".join([each[at : at + 64] for at in range(0, len(each), 64)]) for each in dict.fromkeys(certificates))
    return b"".join(b"-----BEGIN CERTIFICATE-----\n" + block + b"\n-----END CERTIFICATE-----\n" for block in blocks)


def _read(path: Path) -> bytes:
    """Empty for one that is not there or not ours to read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
