"""A host as most people have it, in a virtual machine: cgroup v2 only, systemd as init, a login that systemd lets make no groups."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import e2b_dockerfile_utils
import msgspec
import pytest

import sandbox
from tests.support import virtual_machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# What logind and PAM do for a login: a manager of the user's own, and a session's group that is root's. The user's manager has PID 1
# take the process out of that, by the system's bus.
SCRIPT = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
echo 'tester:x:1234:1234::/mnt/home:/bin/sh' >> /etc/passwd
mkdir -p /mnt/home /run/user/1234; chown -R 1234:1234 /mnt/home /run/user/1234; chmod 700 /run/user/1234; chmod 755 /mnt
cat > /run/systemd/system/user@.service << END
[Unit]
DefaultDependencies=no
[Service]
User=%i
Type=notify
ExecStart=/lib/systemd/systemd --user
Slice=user-%i.slice
Delegate=yes
Environment=XDG_RUNTIME_DIR=/run/user/%i HOME=/mnt/home
END
cat > /run/systemd/system/dbus.socket << END
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
END
cat > /run/systemd/system/dbus.service << END
[Unit]
DefaultDependencies=no
Requires=dbus.socket
After=dbus.socket
[Service]
Type=notify
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation
END
systemctl daemon-reload; systemctl start dbus.socket dbus.service user@1234.service
session="systemd-run --scope --quiet"
export PYTHONPATH=/mnt/packages PYTHONDONTWRITEBYTECODE=1
python="/usr/bin/python3 /mnt/person.py"
$session --slice=user-1234.slice --uid=1234 -- env XDG_RUNTIME_DIR=/run/user/1234 HOME=/mnt/home $python /mnt/home/state
$session --slice=user-0.slice -- $python /mnt/state
find /sys/fs/cgroup -name 'jupyter-sandbox*' | sed 's/^/LEFT /'
echo ALL DONE
"""
PERSON = """
import os, sys
from pathlib import Path
from sandbox.engine import Engine
from sandbox.options import RunOptions
from sandbox.runtime.spec import Limits

print("WE ARE", os.geteuid(), Path("/proc/self/cgroup").read_text().strip(), flush=True)
root = Path(sys.argv[1])
with Engine(root) as engine:
    engine.import_image(Path("/mnt/box.tar"), "box")
    hog = engine.run("box", ["sh", "-c", "x=x; while true; do x=$x$x; done"], options=RunOptions(memory=24 << 20))
    print("HOG", hog.exit_code, hog.reason, flush=True)
    image = engine.build(None, dockerfile="FROM box\\nRUN echo a > /a\\nRUN echo b > /b\\nRUN echo c > /c\\n")
    print("BUILT", engine.run(image, ["cat", "/a", "/b", "/c"]).stdout.split(), flush=True)
    stays = engine.start("box", ["sleep", "1000"], options=RunOptions(memory=32 << 20, pids_limit=7))
    inside = Path(f"/proc/{stays.inspect()['State']['Pid']}/cgroup").read_text()
    print("SCOPE", "/jupyter-sandbox-" in inside and ".scope/jupyter-sandbox/" in inside, flush=True)
with Engine(root) as other:  # its helper has a scope of its own, and enters the other's
    stays = other.container(stays.id)
    print("ENTERED", stays.exec(["cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids.max"]).stdout.split(), flush=True)
    stays.update(Limits(memory=48 << 20))
    print("UPDATED", stays.exec(["cat", "/sys/fs/cgroup/memory.max"]).stdout.split(), flush=True)
    stays.remove(force=True)
from sandbox import doctor
for check in doctor.examine(root).checks:
    if check.name in ("cgroup", "memory limit"):
        print("DOCTOR", check.name, check.ok, flush=True)
"""
EXPECTED = """HOG 137 out of memory: killed at the 24 MiB limit
BUILT [b'a', b'b', b'c']
SCOPE True
ENTERED [b'33554432', b'7']
UPDATED [b'50331648']
DOCTOR cgroup True
DOCTOR memory limit True"""


@pytest.fixture(autouse=True)
def _possible() -> None:
    """What is missing is only a package: qemu-system-x86, linux-image-cloud-amd64, systemd."""
    reason = virtual_machine.why_not() or (None if os.path.exists("/lib/systemd/systemd") else "systemd: not installed")
    if reason is not None:
        pytest.fail(f"REQUIRE_ALL=1 and {reason}", pytrace=False) if os.environ.get("REQUIRE_ALL") == "1" else pytest.skip(reason)


def packages(place: Path) -> None:
    """Our code and what it needs, where anybody may read it; compiled, for nothing is quick in there."""
    for library in (e2b_dockerfile_utils, msgspec):
        shutil.copytree(Path(library.__file__).parent, place / library.__name__)
    shutil.copytree(Path(sandbox.__file__).parent, place / "sandbox")
    subprocess.run(["/usr/bin/python3", "-m", "compileall", "-q", str(place / "sandbox")], check=True)


def box(place: Path, archive: Path) -> None:
    """busybox as an image."""
    (place / "bin").mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), place / "bin/busybox")
    for name in ("sh", "cat", "sleep"):
        (place / "bin" / name).symlink_to("busybox")
    subprocess.run(["tar", "-C", str(place), "-cf", str(archive), "."], check=True)


def test_limits_bite_in_a_scope_that_systemd_makes_for_us(tmp_path: Path) -> None:
    """As an ordinary user and as root, on Debian's own Linux: 6.1, whose overlayfs takes its layers in one string."""
    given = tmp_path / "given"
    given.mkdir()
    (given / "person.py").write_text(PERSON)
    packages(given / "packages")
    box(tmp_path / "box", given / "box.tar")
    parameters = "cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1 systemd.mask=systemd-tmpfiles-setup.service"
    status, console = virtual_machine.run_in_machine(SCRIPT, tmp_path, parameters=parameters, seconds=540, systemd=True, files=given)
    assert status == 0, console[-6000:]
    words = ("WE ARE", "HOG", "BUILT", "SCOPE", "ENTERED", "UPDATED", "DOCTOR", "LEFT", "ALL DONE")
    told = [line.rstrip("\r") for line in console.splitlines() if line.startswith(words)]
    expected = EXPECTED.splitlines()
    assert told[1:8] == told[9:16] == expected, console[-6000:]
    for line, uid in ((told[0], 1234), (told[8], 0)):
        assert line.startswith(f"WE ARE {uid} 0::/user.slice/user-{uid}.slice/run-"), line  # which is not ours to share out
    assert told[16:] == ["ALL DONE"], told
