"""A web proxy on loopback that knows one name: CONNECT and absolute URLs to it are taken to a port of this machine, all else refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Forwarder:
    """`url`: where it listens; `seen`: the first line and the Proxy-Authorization of every connection."""

    url: str
    name: str
    port: int
    seen: list[tuple[str, str]] = field(default_factory=list)

    def serve(self, client: socket.socket) -> None:
        """One connection, to its end."""
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = client.recv(65536)
                if not piece:
                    return
                head += piece
            first, _, fields = head.decode("latin-1").partition("\r\n")
            proofs = [line.partition(": ")[2] for line in fields.split("\r\n") if line.lower().startswith("proxy-authorization:")]
            self.seen.append((first, proofs[0] if proofs else ""))
            method, target, _ = first.split(" ")
            if target.removeprefix("http://").partition("/")[0] != self.name:
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self.port)) as server:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    server.sendall(head)
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for each in (source, target):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@contextmanager
def forwarder(name: str, port: int) -> Iterator[Forwarder]:
    """One for `name` (HOST:PORT), which stands for 127.0.0.1:`port`, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Forwarder(f"http://127.0.0.1:{listener.getsockname()[1]}", name, port)

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=made.serve, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        yield made
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
