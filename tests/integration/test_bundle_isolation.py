"""What a bundle's config promises, seen from inside; and what a hostile bundle cannot reach, with a canary on the host."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox.runtime.bundle.states import States
from tests.support.bundles import Bundle, Json, Oci, created
from tests.support.host import requires

pytestmark = [requires("root", "userns"), pytest.mark.xdist_group("bundles")]

PROFILE = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}


LOOK = """
import json, os, sys
state = json.load(sys.stdin)
print(os.statvfs("/proc/%d/exe" % state["pid"]).f_flag & os.ST_RDONLY)
"""


def own_users(config: Json) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    mapping = [{"containerID": 0, "hostID": 300000, "size": 65536}]
    config["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}


def run(oci: Oci, bundle: Bundle, *argv: str, change: Any = None) -> str:
    bundle.write(*argv, change=change)
    return oci("run", "--bundle", bundle.path, "t-iso").stdout


def test_a_user_namespace_maps_as_the_config_says(oci: Oci, bundle: Bundle) -> None:
    for path in (bundle.rootfs, *bundle.rootfs.rglob("*")):
        os.lchown(path, 300000, 300000)

    told = run(oci, bundle, "sh", "-c", "id -u; cat /proc/self/uid_map; touch /made", change=own_users)

    assert told.split() == ["0", "0", "300000", "65536"]
    assert (bundle.rootfs / "made").stat().st_uid == 300000


def test_capabilities_are_exactly_the_sets_of_the_config(oci: Oci, bundle: Bundle) -> None:
    def change(config: Json) -> None:
        two, one = ["CAP_KILL", "CAP_CHOWN"], ["CAP_KILL"]
        config["process"]["capabilities"] = {"bounding": two, "permitted": two, "effective": one, "inheritable": one, "ambient": one}
        config["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5, 7]}

    told = run(oci, bundle, "sh", "-c", "grep -E 'Cap|NoNew' /proc/self/status; id -G", change=change)

    lines = dict(line.split(":\t") for line in told.splitlines() if ":" in line)
    assert {name: int(value, 16) for name, value in lines.items() if name.startswith("Cap")} == {
        "CapInh": 1 << 5, "CapPrm": 1 << 5, "CapEff": 1 << 5, "CapBnd": 1 << 5 | 1, "CapAmb": 1 << 5,
    }  # fmt: skip
    assert lines["NoNewPrivs"] == "1"
    assert told.splitlines()[-1] == "1000 5 7"


def test_limits_umask_and_oom_score_are_set(oci: Oci, bundle: Bundle) -> None:
    def change(config: Json) -> None:
        config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 33, "hard": 44}]
        config["process"] |= {"oomScoreAdj": 321, "user": {"uid": 0, "gid": 0, "umask": 0o027}}

    script = "ulimit -Sn; ulimit -Hn; umask; cat /proc/self/oom_score_adj"
    assert run(oci, bundle, "sh", "-c", script, change=change).split() == ["33", "44", "0027", "321"]


def test_seccomp_of_the_config_is_installed(oci: Oci, bundle: Bundle) -> None:
    script = "mkdir /new 2>&1; echo $?"

    assert run(oci, bundle, "sh", "-c", script).split() == ["0"]
    (bundle.rootfs / "new").rmdir()
    refused = run(oci, bundle, "sh", "-c", script, change=lambda c: c["linux"].update(seccomp=PROFILE))
    assert ("No space left" in refused, (bundle.rootfs / "new").exists()) == (True, False)


def test_masked_and_readonly_paths(oci: Oci, bundle: Bundle) -> None:
    (bundle.rootfs / "secret").write_text("do not read")
    (bundle.rootfs / "box").mkdir()
    (bundle.rootfs / "box/inner").write_text("x")
    (bundle.rootfs / "fixed").mkdir()

    def change(config: Json) -> None:
        config["linux"]["maskedPaths"] = ["/secret", "/box", "/not-there"]
        config["linux"]["readonlyPaths"] = ["/fixed", "/not-there"]

    script = "cat /secret; ls /box; touch /fixed/x 2>/dev/null || echo fixed; touch /free && echo free"
    assert run(oci, bundle, "sh", "-c", script, change=change).split() == ["fixed", "free"]
    assert run(oci, bundle, "sh", "-c", script).split() == ["do", "not", "readinner", "free"]  # without them all of it is possible


def test_a_readonly_root_keeps_writable_mounts(oci: Oci, bundle: Bundle) -> None:
    def change(config: Json) -> None:
        config["root"]["readonly"] = True
        config["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]})

    assert run(oci, bundle, "sh", "-c", "touch /x 2>/dev/null || echo ro; touch /tmp/x && echo rw", change=change).split() == ["ro", "rw"]


def test_bind_mounts_with_their_options(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("host")

    def change(config: Json) -> None:
        config["mounts"] += [
            {"destination": "/rw/deep", "source": str(shared), "options": ["rbind", "rprivate"]},
            {"destination": "/ro", "source": str(shared), "options": ["rbind", "ro", "nosuid", "noexec"]},
            {"destination": "/one", "source": str(shared / "file"), "options": ["bind", "ro"]},
        ]

    script = "echo more > /rw/deep/new; touch /ro/x 2>/dev/null || echo ro; cat /one; grep ' /ro ' /proc/mounts"
    told = run(oci, bundle, "sh", "-c", script, change=change)

    assert (shared / "new").read_text() == "more\n"
    assert told.startswith("ro\nhost")
    assert {"ro", "nosuid", "noexec"} <= set(told.split()[-3].split(","))


def test_tmpcopyup_begins_with_the_images_files(oci: Oci, bundle: Bundle) -> None:
    (bundle.rootfs / "seed/sub").mkdir(parents=True)
    (bundle.rootfs / "seed/sub/file").write_text("seed")
    (bundle.rootfs / "seed/link").symlink_to("sub/file")
    os.chown(bundle.rootfs / "seed/sub/file", 12, 34)
    (bundle.rootfs / "seed").chmod(0o751)
    mount = {"destination": "/seed", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}

    script = "cat /seed/link; stat -c %u:%g /seed/sub/file; stat -c %a /seed; rm /seed/link"
    told = run(oci, bundle, "sh", "-c", script, change=lambda c: c["mounts"].append(mount))

    assert told.split() == ["seed12:34", "751"]
    assert (bundle.rootfs / "seed/link").is_symlink()


@pytest.mark.parametrize("destination", ["/link/inside", "/link", "/up/canary", "/../../../../canary-dir/x"])
def test_a_mount_target_cannot_leave_the_root(oci: Oci, bundle: Bundle, tmp_path: Path, destination: str) -> None:
    outside = tmp_path / "canary-dir"
    outside.mkdir()
    (outside / "canary").write_text("unharmed")
    (bundle.rootfs / "link").symlink_to(outside)
    (bundle.rootfs / "up").symlink_to("../" * 40 + str(outside).lstrip("/"))
    mount = {"destination": destination, "type": "tmpfs", "source": "tmpfs"}
    bundle.write("sh", "-c", f"echo hit > {destination}/canary; echo hit > /link/canary", change=lambda c: c["mounts"].append(mount))

    oci("run", "--bundle", bundle.path, "t-iso", check=False)

    assert {path.name: path.read_text() for path in outside.iterdir()} == {"canary": "unharmed"}
    assert not os.path.ismount(outside)


def test_the_canary_sees_a_mount_that_does_leave(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "canary-dir"
    outside.mkdir()
    mount = {"destination": "/in", "source": str(outside), "options": ["bind"]}

    run(oci, bundle, "sh", "-c", "echo hit > /in/canary", change=lambda c: c["mounts"].append(mount))

    assert (outside / "canary").read_text() == "hit\n"


def test_namespaces_are_joined_by_path(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("sleep", "1000", change=lambda c: c.update(hostname="first"))
    created(oci, bundle, "t-first", tmp_path / "out")
    oci("start", "t-first")
    pid = oci.state("t-first")["pid"]

    def change(config: Json) -> None:
        joined = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
        config["linux"]["namespaces"] = [{"type": "mount"}, *({"type": t, "path": f"/proc/{pid}/ns/{f}"} for t, f in joined.items())]
        del config["hostname"]

    script = "hostname; for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; test $$ -gt 1 && echo below"
    told = run(oci, bundle, "sh", "-c", script, change=change)

    assert told.split() == ["first", *(os.readlink(f"/proc/{pid}/ns/{name}") for name in ("net", "ipc", "uts", "pid")), "below"]


def test_sysctls_of_the_containers_namespaces_only(oci: Oci, bundle: Bundle) -> None:
    def change(config: Json) -> None:
        config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "123456"}

    assert run(oci, bundle, "cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/shmmax", change=change).split() == ["1", "123456"]
    bundle.write("true", change=lambda c: c["linux"].update(sysctl={"kernel.panic": "1"}))
    before = Path("/proc/sys/kernel/panic").read_text()
    assert "kernel.panic" in oci("create", "--bundle", bundle.path, "t-iso", check=False).stderr
    assert Path("/proc/sys/kernel/panic").read_text() == before


def test_device_rules_bite(oci: Oci, bundle: Bundle) -> None:
    def change(config: Json, *, allow: bool) -> None:
        config["linux"]["devices"] = []
        config["linux"]["resources"] = {"devices": [{"allow": allow, "access": "rwm"}]}
        config["process"]["capabilities"]["bounding"].append("CAP_MKNOD")
        for name in ("permitted", "effective"):
            config["process"]["capabilities"][name] = config["process"]["capabilities"]["bounding"]

    major, minor = Path("/sys/class/misc/tun/dev").read_text().strip().split(":")  # anybody may open it, where the rules let them
    script = f"mknod /tun c {major} {minor} && (: < /tun) 2>/dev/null && echo read; head -c 1 /dev/zero | wc -c; rm -f /tun"
    denied = run(oci, bundle, "sh", "-c", script, change=lambda c: change(c, allow=False))
    allowed = run(oci, bundle, "sh", "-c", script, change=lambda c: change(c, allow=True))

    assert (denied.split(), allowed.split()) == (["1"], ["read", "1"])


@requires("memory")
def test_a_memory_limit_bites_and_update_changes_it(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    limit = 32 << 20

    def change(config: Json) -> None:
        config["linux"]["resources"] = {"memory": {"limit": limit, "swap": limit}, "pids": {"limit": 20}}

    bundle.write("sh", "-c", "head -c 100000000 /dev/zero | tail >/dev/null; echo $?", change=change)
    hog = oci("run", "--bundle", bundle.path, "t-hog", check=False)
    assert 137 in (hog.returncode, *map(int, hog.stdout.split()))  # the shell itself, or its child
    bundle.write("sleep", "1000", change=change)
    created(oci, bundle, "t-limit", tmp_path / "out")
    group = next(Path("/sys/fs/cgroup/memory").glob(f"**/sandbox-oci/{States(oci.root).group_name('t-limit')}"))
    assert int((group / "memory.limit_in_bytes").read_text()) == limit
    oci("update", "--memory", "16m", "--memory-swap", "16m", "t-limit")
    assert int((group / "memory.limit_in_bytes").read_text()) == 16 << 20
    oci("update", "--memory", "64m", "--memory-swap", "64m", "t-limit")  # the other order: both ways
    assert int((group / "memory.limit_in_bytes").read_text()) == 64 << 20


def test_a_fork_bomb_stays_below_its_limit(oci: Oci, bundle: Bundle) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 100 & done; echo all"
    bundle.write("sh", "-c", script, change=lambda c: c["linux"].update(resources={"pids": {"limit": 10}}))

    assert "all" not in oci("run", "--bundle", bundle.path, "t-bomb", check=False).stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("root"), "root is missing"),
        (lambda c: c["process"].update(cwd="relative"), "must be absolute"),
        (lambda c: c["process"].update(args=[]), "at least one"),
        (lambda c: c["process"].update(rlimits=[{"type": "RLIMIT_NICER", "soft": 1, "hard": 1}]), "RLIMIT_NICER"),
        (lambda c: c["process"].update(apparmorProfile="docker-default"), "apparmor_profile"),
        (lambda c: c["linux"]["namespaces"].append({"type": "pid"}), "given twice"),
        (lambda c: c["linux"]["namespaces"].append({"type": "galaxy"}), "galaxy"),
        (lambda c: c["linux"].update(cgroupsPath="../../up"), "leads outside"),
        (lambda c: c["linux"].update(cgroupsPath="system.slice:a:b"), "systemd"),
        (lambda c: c["linux"].update(rootfsPropagation="sideways"), "sideways"),
        (lambda c: c["linux"].update(intelRdt={"closID": "x"}), "intel_rdt"),
        (lambda c: c["linux"].update(resources={"rdma": {"mlx": {}}}), "rdma"),
        (lambda c: c["linux"].update(resources={"memory": {"novel": 5}}), "memory.novel"),
        (lambda c: c["mounts"].append({"destination": "/x", "source": "/nowhere", "options": ["bind"]}), "/nowhere"),
        (lambda c: c["mounts"].append({"destination": "/x", "source": "y"}), "no type"),
        (lambda c: c["mounts"].append({"destination": "/x", "type": "tmpfs", "options": ["size=nonsense"]}), "new_mount"),
        (lambda c: c.update(hooks={"prestart": [{"path": "relative"}]}), "must be absolute"),
        (lambda c: c.update(ociVersion="2.0.0"), "2.0.0"),
        (lambda c: c.update(mounts="none"), "$.mounts"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(oci: Oci, bundle: Bundle, change: Any, words: str) -> None:
    bundle.write("true", change=change)

    done = oci("create", "--bundle", bundle.path, "t-refused", check=False)

    assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    assert (oci.ids(), (oci.root / "t-refused").exists()) == ([], False)


def test_a_config_that_is_no_json_is_named(oci: Oci, bundle: Bundle) -> None:
    (bundle.path / "config.json").write_text("{")

    assert "config.json" in oci("create", "--bundle", bundle.path, "t-refused", check=False).stderr


def test_the_hosts_python_cannot_be_written_from_a_container(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    """CVE-2019-5736: root of a container without a user namespace is the host's; what set it up is executed from a read-only mount."""
    look = tmp_path / "look.py"
    look.write_text(LOOK)
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"{sys.executable} {look} > {tmp_path}/flag"]}
    bundle.write("true", change=lambda c: c.update(hooks={"createRuntime": [hook]}))

    oci("run", "--bundle", bundle.path, "t-iso")

    assert (tmp_path / "flag").read_text() == "1\n"
    assert not os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY  # an ordinary process shows that the question can be answered no
