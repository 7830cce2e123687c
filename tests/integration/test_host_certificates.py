"""This machine's extra certificate authorities in builds and containers: a TLS server that only this machine trusts is reached."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sandbox.runtime import host_ca
from tests.support.command_line import CommandLine, command_line
from tests.support.host import requires

pytestmark = [requires("root", "tool:openssl"), pytest.mark.xdist_group("network")]

FETCH = "import urllib.request as r, sys; print(r.urlopen(sys.argv[1]).read().decode())"


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        """Not on the terminal of the tests."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `ca.pem`, and `server.pem` that it signed for 127.0.0.1."""
    place = tmp_path_factory.mktemp("authority")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=campus", "-days", "2")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
    (place / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    given = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
    openssl("x509", "-req", "-in", "server.csr", *given, "-out", "server.crt")
    (place / "server.pem").write_bytes((place / "server.crt").read_bytes() + (place / "server.key").read_bytes())
    return place


@pytest.fixture(scope="module")
def url(authority: Path) -> Iterator[str]:
    """Of a server that says hello."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hello) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"https://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("certificates") / "engine") as made:
        made.ok("load", "-i", str(python_tar))
        made.ok("tag", "localhost/python", "python")
        yield made
        made.ok("prune", "-f")


def test_a_build_trusts_what_the_host_trusts_and_keeps_nothing_of_it(
    sandbox: CommandLine, authority: Path, url: str, tmp_path: Path
) -> None:
    (tmp_path / "fetch.py").write_text(FETCH)
    (tmp_path / "Dockerfile").write_text(f"FROM python\nCOPY fetch.py /\nRUN python /fetch.py {url} > /heard\n")
    words = ("build", "-q", "--timestamp", "1700000000", str(tmp_path))
    env = {"SSL_CERT_FILE": str(authority / "ca.pem")}
    refused = sandbox(*words, "--no-host-ca", env=env)
    assert refused.status != 0
    assert "CERTIFICATE_VERIFY_FAILED" in refused.err
    image = sandbox.ok(*words, env=env).out.strip()
    assert sandbox.ok(*words, "--no-host-ca").out.strip() == image  # it counts in no key: the step is remembered
    assert sandbox.ok("run", "--rm", image, "cat", "/heard").out == "hello\n"
    text = sandbox.ok("inspect", image).out + sandbox.ok("history", "--no-trunc", image).out
    assert "host-ca" not in text


def test_a_build_is_the_same_with_and_without(sandbox: CommandLine, authority: Path, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN echo made > /made\n")
    words = ("build", "-q", "--no-cache", "--timestamp", "1700000000", str(tmp_path))
    made = {sandbox.ok(*words, *flags, env={"SSL_CERT_FILE": str(authority / "ca.pem")}).out for flags in ((), ("--no-host-ca",))}
    assert len(made) == 1


def test_a_container_trusts_it_on_request_and_a_commit_keeps_nothing(sandbox: CommandLine, authority: Path, url: str) -> None:
    env = {"SSL_CERT_FILE": str(authority / "ca.pem")}
    call = ("python", "python", "-c", FETCH, url)
    assert sandbox.ok("run", "--name", "trusting", "--host-ca", "--network", "host", *call, env=env).out == "hello\n"
    refused = sandbox("run", "--rm", "--network", "host", *call, env=env)
    assert (refused.status, "CERTIFICATE_VERIFY_FAILED" in refused.err) == (1, True)
    own = sandbox("run", "--rm", "--host-ca", "--network", "host", "-e", "SSL_CERT_FILE=/none", *call, env=env)
    assert own.status == 1  # the user's own variable wins
    sandbox.ok("commit", "trusting", "kept")
    assert "host-ca" not in sandbox.ok("inspect", "kept").out
    before, after = (sorted(sandbox.json("inspect", name)[0]["Config"]["Env"]) for name in ("python", "kept"))
    assert before == after
    sandbox.ok("rm", "trusting")


def test_the_distributions_own_file_has_both(sandbox: CommandLine, authority: Path, tmp_path: Path) -> None:
    place = host_ca.PLACES[0]
    other = (authority / "server.crt").read_text()
    (tmp_path / "own.crt").write_text(other)
    (tmp_path / "Dockerfile").write_text(f"FROM python\nCOPY own.crt {place}\n")
    image = sandbox.ok("build", "-q", str(tmp_path)).out.strip()
    env = {"SSL_CERT_FILE": str(authority / "ca.pem")}
    seen = sandbox.ok("run", "--rm", "--host-ca", image, "cat", place, env=env).out
    assert other.strip() in seen
    assert (authority / "ca.pem").read_text().strip() in seen
    assert sandbox.ok("run", "--rm", image, "cat", place, env=env).out == other
    assert sandbox.ok("run", "--rm", image, "ls", "/dev").out.count("host-ca") == 0


def test_a_build_has_the_network_it_asks_for(sandbox: CommandLine, tmp_path: Path) -> None:
    script = "RUN python -m pip download -q --no-deps -d /tmp six==1.16.0; ls /sys/class/net /tmp >&2\n"
    (tmp_path / "Dockerfile").write_text(f"FROM python\n{script}RUN --network=none ls /sys/class/net >&2\n")
    said = sandbox.ok("build", "--progress", "plain", "--network", "bridge", str(tmp_path)).err
    assert said.count("eth0") == 1
    assert "six-1.16.0" in said
    wrong = sandbox("build", "--network", "nowhere", str(tmp_path))
    assert (wrong.status, "network nowhere: there is none" in wrong.err) == (1, True)
