"""Uses all three services by their names; prints how often it has been here, as each of them says."""

import socket
import urllib.request

import pg8000.native

database = pg8000.native.Connection("app", host="database", database="postgres")
database.run("CREATE TABLE IF NOT EXISTS visits (at timestamptz DEFAULT now())")
database.run("INSERT INTO visits DEFAULT VALUES")
[[visits]] = database.run("SELECT count(*) FROM visits")
with socket.create_connection(("cache", 6379)) as cache:
    cache.sendall(b"INCR visits\r\n")
    cached = cache.recv(100).decode().strip(":\r\n")
with urllib.request.urlopen("http://web/") as page:
    print(visits, cached, page.read().decode().strip())
