"""A capture for real: what works inside, what it weighs, and that nothing private of this host is in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Engine
from sandbox.image.capture_python import examine
from sandbox.image.store import Store
from tests.support.host import requires

pytestmark = [requires("root", "userns", "overlay"), pytest.mark.xdist_group("capture")]

_CAPTURE = """
import sys
from pathlib import Path
from sandbox.image.capture import capture
from sandbox.image.store import Store
root, python, name, *packages = sys.argv[1:]
print(capture(Store(Path(root)), name, packages=packages, python=Path(python)).id)
"""


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine with this Python as localhost/python."""
    with Engine(tmp_path_factory.mktemp("captured") / "engine") as engine:
        engine.capture("localhost/python")
        yield engine


def run(engine: Engine, *argv: str, image: str = "localhost/python") -> str:
    done = engine.run(image, argv)
    assert done.exit_code == 0, done.stderr.decode()
    return done.stdout.decode()


MODULES = (
    "ssl", "sqlite3", "ctypes", "hashlib", "lzma", "bz2", "readline", "zoneinfo", "multiprocessing",
    "curses", "uuid", "decimal", "asyncio", "venv", "ensurepip",
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_modules_of_c_libraries_import(captured: Engine, module: str) -> None:
    run(captured, "python", "-c", f"import {module}")


def test_python_knows_its_new_prefix(captured: Engine) -> None:
    code = """if True:
        import sys, os
        print(sys.prefix, sys.base_exec_prefix, os.path.dirname(sys.executable), os.__file__.startswith(sys.prefix), sys.version[:6])
    """
    prefix, exec_prefix, scripts, inside, version = run(captured, "python3", "-c", code).split()
    assert (exec_prefix, scripts, inside) == (prefix, f"{prefix}/bin", "True")
    assert prefix in ("/usr", "/usr/local")
    assert sys.version.startswith(version)


def test_a_traceback_and_the_compiled_files_name_the_images_paths(captured: Engine) -> None:
    code = "import json, os; print(json.dumps.__code__.co_filename, json.__cached__, os.path.exists(json.__cached__))"
    name, compiled, exists = run(captured, "python", "-c", code).split()
    assert name.startswith(("/usr/lib", "/usr/local/lib"))
    assert "__pycache__" in compiled
    assert exists == "True"


def test_starting_python_writes_nothing(captured: Engine) -> None:
    # Every module that a start loads has its compiled file: nothing is compiled anew in each container.
    code = """if True:
        import asyncio, email.parser, http.client, json, logging, os, ssl, sqlite3, sys
        compiled = [c for m in list(sys.modules.values()) if (c := getattr(m, "__cached__", None))]
        print(len(compiled) > 10, [c for c in compiled if not os.path.exists(c)])
    """
    assert run(captured, "python", "-c", code) == "True []\n"


def test_the_shell_and_small_tools_work(captured: Engine) -> None:
    assert run(captured, "sh", "-c", "cd / && touch /x1 && ls | grep x").split() == ["x1"]
    script = """
printf 'b\\na\\n' | sort | sed s/a/c/ | awk '{print $1}' | tr '\\n' ' '
echo 5 | xargs seq | tail -1
find /etc -name passwd
tar -czf - /etc/passwd 2>&- | tar -tzf - | wc -l
"""
    assert run(captured, "bash", "-c", script).split() == ["c", "b", "5", "/etc/passwd", "1"]


def test_users_zones_locales_and_services_are_there(captured: Engine) -> None:
    code = """if True:
        import datetime, locale, os, pwd, socket, zoneinfo
        print([entry.pw_name for entry in pwd.getpwall()], socket.getservbyname("https"), os.environ["LANG"])
        print(datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")).utcoffset(), locale.setlocale(locale.LC_ALL, ""))
    """
    assert run(captured, "python", "-c", code) == "['root', 'nobody'] 443 C.UTF-8\n2:00:00 C.UTF-8\n"


def test_certificates_of_the_host_verify(captured: Engine) -> None:
    code = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
    here = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={}, check=True, cwd="/").stdout
    assert int(run(captured, "python", "-c", code)) >= max(1, int(here))


def test_threads_that_are_cancelled_and_processes_work(captured: Engine) -> None:
    # pthread_cancel opens libgcc_s by name; multiprocessing needs /dev/shm and semaphores.
    code = """if True:
        import ctypes.util, multiprocessing
        ctypes.CDLL("libgcc_s.so.1")
        print(sum(multiprocessing.Pool(2).map(abs, [-1, -2])), ctypes.util.find_library("c"))
    """
    assert run(captured, "python", "-c", code).split() == ["3", "libc.so.6"]


def test_pip_and_environments_work_without_a_network(captured: Engine) -> None:
    assert "pip" in run(captured, "python", "-m", "pip", "list")
    assert "(python" in run(captured, "pip3", "--version")
    assert "/tmp/v/" in run(captured, "sh", "-c", "python -m venv /tmp/v && /tmp/v/bin/pip --version")


@requires("network")
@pytest.mark.network
def test_pip_installs_over_verified_tls(captured: Engine) -> None:
    done = captured.run(
        "localhost/python",
        ["sh", "-c", "pip install -q --root-user-action ignore iniconfig && python -c 'import iniconfig'"],
        network="host",
    )
    assert done.exit_code == 0, done.stderr.decode()


def test_every_user_may_use_it(captured: Engine) -> None:
    done = captured.run("localhost/python", ["python", "-c", "import os, ssl; print(os.getuid())"], user="nobody")
    assert done.stdout == b"65534\n"


def test_nothing_that_the_loader_needs_is_missing(captured: Engine) -> None:
    """Each ELF file of the image finds its libraries in the image, asked of the image's own loader (these files are the host's)."""
    script = """
for f in $(find /usr/bin /usr/local/bin /usr/lib /usr/local/lib /lib64/ -type f \\( -perm -100 -o -name '*.so*' \\)); do
  case $(head -c 4 "$f" | od -An -c | tr -d ' ') in
    177ELF) LD_TRACE_LOADED_OBJECTS=1 /lib64/ld-linux-x86-64.so.2 "$f" 2>&1 | grep "not found" | sed "s|^|$f|";;
  esac
done; true
"""
    assert run(captured, "bash", "-c", script if os.uname().machine == "x86_64" else "true") == ""


def test_it_is_small_and_says_what_it_is(captured: Engine) -> None:
    (summary,) = captured.images()
    assert summary.size < 120_000_000
    config = captured.image("localhost/python").config.value
    labels = config.config.labels or {}
    assert labels["org.jupyter.sandbox.lang"] == "python"
    assert labels["org.jupyter.sandbox.python.version"] == ".".join(map(str, sys.version_info[:3]))
    assert config.config.cmd == ["python3"]
    assert config.os == "linux"
    assert os.uname().nodename not in "".join(labels.values()).split()


def test_capturing_again_gives_the_same_image(captured: Engine, tmp_path: Path) -> None:
    first = captured.image("localhost/python").id
    assert capture(tmp_path / "other", sys.executable) == first


def test_the_image_does_not_change_with_the_host(captured: Engine) -> None:
    """No file of the layer shares its inode with the host's."""
    (layer,) = (captured.root / "snapshots").iterdir()
    assert (layer / "usr/bin").is_dir()
    shared = [name for name in os.listdir(layer / "usr/bin") if _same_inode(layer / "usr/bin" / name, Path("/usr/bin") / name)]
    assert shared == []


def _same_inode(one: Path, other: Path) -> bool:
    if one.is_symlink() or not other.exists():
        return False
    return (one.stat().st_dev, one.stat().st_ino) == (other.stat().st_dev, other.stat().st_ino)


# -- nothing private ------------------------------------------------------------------------------------------------

SECRET = b"canary-7f3a9c51"


def capture(root: Path, python: str | Path, *packages: str, env: dict[str, str] | None = None) -> str:
    """Capture in a process of its own, as a person with this environment would."""
    command = [sys.executable, "-c", _CAPTURE, str(root), str(python), "localhost/python", *packages]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def findings(root: Path, needle: bytes) -> list[str]:
    """Where in an engine's state the bytes occur: file contents, names, links, extended attributes, documents, the database."""
    found = []
    for directory, names, files in os.walk(root):
        for path in (os.path.join(directory, name) for name in (*names, *files)):
            texts = [os.fsencode(os.path.relpath(path, root))]
            if os.path.islink(path):
                texts.append(os.fsencode(os.readlink(path)))
            elif os.path.isfile(path):
                texts.append(Path(path).read_bytes())
            texts += [
                os.fsencode(name) + os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
            ]
            if any(needle in text for text in texts):
                found.append(os.path.relpath(path, root))
    return found


@pytest.fixture
def alice(tmp_path: Path) -> tuple[Path, Path, dict[str, str]]:
    """A person whose home and virtual environment are full of secrets: (home, the environment's Python, environment variables)."""
    home = tmp_path / "home" / "alice-in-wonderland"
    secret = SECRET.decode()
    for name in (
        ".ssh/id_ed25519",
        ".config/pip/pip.conf",
        ".pip/pip.conf",
        ".netrc",
        ".bash_history",
        ".cache/pip/x",
        ".aws/credentials",
        ".jupyter/token",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"[global]\nindex-url = https://user:{secret}@private.example/simple\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "env"], check=True)
    python = home / "env/bin/python"
    site = Path(examine(python).paths["purelib"])
    (site / "sitecustomize.py").write_text(f"# {secret}\n")
    (site / "notes.txt").write_text(secret)
    (site / "private.pth").write_text(f"/home/{secret}\n")
    (site / "app.py").write_text("import sys\n")
    (site / "app").mkdir()
    (site / "app/.env").write_text(f"TOKEN={secret}\n")
    info = site / "app-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: app\nVersion: 1.0\n")
    (info / "direct_url.json").write_text(f'{{"url": "https://{secret}@private.example/app.zip", "archive_info": {{}}}}')
    (home / "env/bin/app").write_text(f"#!{python}\nimport app, sys; print(app.__file__, sys.executable)\n")
    (home / "env/bin/app").chmod(0o755)
    (site / "app_settings.py").write_text(f"HOME = {str(home / 'env')!r}\nCACHE = {str(home / '.cache')!r}\n")
    subprocess.run([python, "-m", "compileall", "-q", site / "app.py", site / "app_settings.py"], check=True)
    caches = sorted(path.relative_to(site) for path in (site / "__pycache__").iterdir() if path.name.startswith("app"))
    assert len(caches) == 2
    recorded = (
        "app.py",
        "app_settings.py",
        *map(str, caches),
        "../../../bin/app",
        "app-1.0.dist-info/METADATA",
        "app-1.0.dist-info/RECORD",
        "app-1.0.dist-info/direct_url.json",
    )
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in recorded))
    environment = {
        "HOME": str(home),
        "API_TOKEN": secret,
        "PIP_INDEX_URL": f"https://{secret}@private.example",
        "HISTFILE": str(home / ".bash_history"),
    }
    return home, python, environment


def test_no_secret_of_the_person_is_in_any_byte(alice: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    home, python, environment = alice
    root = tmp_path / "engine"
    capture(root, python, "app", env=environment)
    assert findings(root, SECRET) == []
    assert findings(root, home.name.encode()) == []
    assert findings(root, os.fsencode(home)) == []


def test_the_search_for_secrets_finds_one_that_was_captured(alice: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    _, python, environment = alice
    site = Path(examine(python).paths["purelib"])
    (site / "app.py").write_text(f"TOKEN = '{SECRET.decode()}'\n")
    root = tmp_path / "engine"
    capture(root, python, "app", env=environment)
    assert [name for name in findings(root, SECRET) if name.endswith("/app.py")]


def test_a_captured_package_works_and_its_paths_are_the_images(alice: tuple[Path, Path, dict[str, str]], engine: Engine) -> None:
    _, python, environment = alice
    capture(engine.root, python, "app", env=environment)
    place, executable = run(engine, "app").split()
    assert place.endswith("/app.py")
    assert executable.startswith(("/usr/local/bin/python", "/usr/bin/python"))
    code = "import app_settings, app; print(app_settings.HOME, app_settings.CACHE, app.__spec__.cached)"
    home, cache, compiled = run(engine, "python", "-c", code).split()
    assert (home, cache) == ("/usr/local", "/root/.cache")
    assert run(engine, "ls", compiled).split() == [compiled]


def test_the_place_of_this_python_is_not_told(captured: Engine) -> None:
    base = os.path.realpath(sys.base_prefix)
    if base in ("/usr", "/usr/local"):
        pytest.skip("this Python is where distributions put it: nothing to hide")
    assert findings(captured.root, os.fsencode(base)) == []


def test_the_home_of_this_person_is_not_told(captured: Engine) -> None:
    home = os.path.expanduser("~")
    private = [name for name in (".ssh", ".config", ".cache", ".pyenv", ".local") if os.path.isdir(f"{home}/{name}")]
    assert [findings(captured.root, os.fsencode(f"{home}/{name}/")) for name in private] == [[] for _ in private]


def test_only_root_and_nobody_are_users(captured: Engine) -> None:
    (layer,) = (captured.root / "snapshots").iterdir()
    assert [line.split(":")[0] for line in (layer / "etc/passwd").read_text().splitlines()] == ["root", "nobody"]
    for name in ("shadow", "gshadow", "machine-id", "ssh", "pip.conf", "environment", "fstab", "krb5.conf"):
        assert not (layer / "etc" / name).exists()
    assert list((layer / "root").iterdir()) == list((layer / "home").iterdir()) == []


@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="no Python of the distribution")
def test_the_distributions_python_stays_in_usr(engine: Engine) -> None:
    if os.path.realpath(examine("/usr/bin/python3").base_prefix) != "/usr":
        pytest.skip("/usr/bin/python3 is not the distribution's")
    capture(engine.root, "/usr/bin/python3")
    assert run(engine, "python3", "-c", "import ssl, sqlite3, ctypes, sys; print(sys.prefix)") == "/usr\n"


def test_an_image_of_a_full_disk_is_not_left_half_made(tmp_path: Path) -> None:
    """A tmpfs too small for it: an error, and afterwards no image, no name, no snapshot."""
    small = tmp_path / "small"
    small.mkdir()
    script = f"""
mount -t tmpfs -o size=20m none {small}
{sys.executable} -c '{_CAPTURE}' {small}/engine {sys.executable} localhost/python 2>&1 | tail -1
find {small}/engine/snapshots {small}/engine/drafts -mindepth 1 | wc -l
"""
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, check=True)
    error, left = done.stdout.strip().splitlines()
    assert "no space left on device" in error
    assert left == "0"


def test_a_capture_that_is_killed_leaves_the_store_usable(tmp_path: Path) -> None:
    root = tmp_path / "engine"
    command = [sys.executable, "-c", _CAPTURE, str(root), sys.executable, "localhost/python"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not any((root / "drafts").glob("*/upper/usr")) and process.poll() is None:
        os.sched_yield()
    process.kill()
    assert process.wait() == -9
    assert Store(root).references() == []
    capture(root, sys.executable)
    assert len(Store(root).references()) == 1
    with Engine(root) as engine:
        engine.prune()
    assert list((root / "drafts").iterdir()) == []
    shutil.rmtree(root)
