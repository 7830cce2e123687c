"""Capabilities, sysctls, and the flags that ask for them: docker's rules, and what cannot hold is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox import launch, options
from sandbox.errors import InvalidOption, Unsupported
from sandbox.options import RunOptions
from sandbox.runtime.init import cgroup, meter
from sandbox.runtime.init.program import CAPABILITIES
from sandbox.runtime.plan import Site, capabilities, make_plan
from sandbox.runtime.security.capabilities import DEFAULT_CAPABILITIES, choose_capabilities
from sandbox.runtime.security.kernel_files import check_sysctls, sysctl_file
from sandbox.runtime.spec import ContainerSpec, Device, Process, Rate, Rootfs

EVERYTHING = set(CAPABILITIES)


@pytest.mark.parametrize(
    ("add", "drop", "held"),
    [
        ((), (), set(DEFAULT_CAPABILITIES)),
        (("NET_ADMIN",), (), {*DEFAULT_CAPABILITIES, "NET_ADMIN"}),
        (("cap_net_admin",), ("CAP_CHOWN", "kill"), {*DEFAULT_CAPABILITIES, "NET_ADMIN"} - {"CHOWN", "KILL"}),
        ((), ("ALL",), set()),
        (("CHOWN",), ("ALL",), {"CHOWN"}),
        (("ALL",), (), EVERYTHING),
        (("all",), ("SYS_ADMIN",), EVERYTHING - {"SYS_ADMIN"}),
    ],
)
def test_capabilities_are_chosen_as_docker_does(add: tuple[str, ...], drop: tuple[str, ...], held: set[str]) -> None:
    assert set(choose_capabilities(add, drop)) == held


def test_unknown_capability_is_refused() -> None:
    with pytest.raises(InvalidOption, match="capability 'FLY': not known"):
        choose_capabilities(("FLY",), ())


def spec(**given: object) -> ContainerSpec:
    rootfs = Rootfs(("/root/snapshots/a/diff",), "/root/containers/x/upper", "/root/containers/x/work")
    return ContainerSpec("x", rootfs, Process(("true",)), **given)  # type: ignore[arg-type]  # by name


def site(**given: object) -> Site:
    facts: dict[str, object] = {
        "store": "/root", "record": "/root/containers/x", "privileged": True, "id_base": 65536, "uid": 0, "gid": 0,
        "resolv_conf": "", "cgroup": None,
    }  # fmt: skip
    return Site(**{**facts, **given})  # type: ignore[arg-type]  # by name


def test_capability_we_do_not_hold_is_refused_in_our_own_user_namespace() -> None:
    mask = (1 << 41) - 1 - (1 << CAPABILITIES["SYS_RESOURCE"])
    with pytest.raises(Unsupported, match="SYS_RESOURCE"):
        capabilities(spec(userns="host", cap_add=("SYS_RESOURCE",)), mask)
    assert set(capabilities(spec(userns="host", privileged=True), mask)) == EVERYTHING - {"SYS_RESOURCE"}
    assert "SYS_RESOURCE" in capabilities(spec(cap_add=("SYS_RESOURCE",)), 0)


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "kernel.msgmax", "kernel.shmmax", "fs.mqueue.msg_max"])
def test_settings_of_its_own_namespaces_may_be_set(name: str) -> None:
    check_sysctls([(name, "1")], own_network=True)
    assert sysctl_file(name).startswith("/proc/sys/")


@pytest.mark.parametrize(
    "name",
    ["kernel.panic", "kernel.core_pattern", "vm.overcommit_memory", "fs.file-max", "net.../../kernel/panic", "net/ipv4", "kernel.hostname"],
)
def test_settings_of_the_host_are_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match="not a setting of the container's own"):
        check_sysctls([(name, "1")], own_network=True)


def test_network_settings_are_the_hosts_on_the_hosts_network() -> None:
    with pytest.raises(InvalidOption, match="the network is the host's"):
        launch.make_sysctls(RunOptions(network="host", sysctl=(("net.ipv4.ip_forward", "1"),)))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("/dev/kvm", ("/dev/kvm", "/dev/kvm")),
        ("/dev/a:/dev/b", ("/dev/a", "/dev/b")),
        ("/dev/a:/dev/b:rwm", ("/dev/a", "/dev/b")),
        ("/dev/a:rw", ("/dev/a", "/dev/a")),
    ],
)
def test_devices_are_read_as_dockers(text: str, parsed: tuple[str, str]) -> None:
    assert options.parse_device(text) == parsed


@pytest.mark.parametrize("text", ["kvm", "/dev/a:/dev/b:r", "/dev/a:/dev/b:x", "/dev/a:", "/dev/a:/dev/b:rw:m", "/dev/a:/dev/b:m"])
def test_device_that_cannot_be_given_like_that_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption):
        options.parse_device(text)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (options.parse_ulimit, "files=1"),
        (options.parse_ulimit, "nofile=20:10"),
        (options.parse_ulimit, "nofile=-1:10"),
        (options.parse_security_opt, "=x"),
        (options.parse_pair, "name"),
        (options.parse_rate, "/dev/sda"),
        (options.parse_rate, "sda:1mb"),
        (options.parse_rate, "/dev/sda:fast"),
        (options.parse_storage_opt, "inodes=4"),
        (options.parse_storage_opt, "size="),
        (options.parse_kernel_memory, "1g"),
        (options.parse_whole, "1.5"),
        (options.parse_capability, "NET ADMIN"),
    ],
)
def test_what_cannot_be_meant_is_refused(parse: object, text: str) -> None:
    with pytest.raises(InvalidOption):
        parse(text)  # type: ignore[operator]  # every row is a converter


@pytest.mark.parametrize(
    ("option", "seccomp", "no_new_privileges"),
    [
        ("seccomp=unconfined", "unconfined", True),
        ("seccomp=builtin", "default", True),
        ("seccomp:/p", "text of /p", True),
        ("no-new-privileges", "default", True),
        ("no-new-privileges:false", "default", False),
        ("no-new-privileges=true", "default", True),
        ("apparmor=unconfined", "default", True),
        ("label=disable", "default", True),
    ],
)
def test_security_options_are_read_as_dockers(option: str, seccomp: str, no_new_privileges: bool) -> None:
    given = RunOptions(security_opt=(options.parse_security_opt(option),))
    assert launch.make_seccomp(given, lambda path: f"text of {path}") == seccomp
    assert launch.make_no_new_privileges(given) == no_new_privileges


@pytest.mark.parametrize("option", ["apparmor=mine", "label=type:x", "no-new-privileges=maybe", "systempaths=unconfined"])
def test_security_option_nothing_answers_to_is_refused(option: str) -> None:
    with pytest.raises(Unsupported, match="not offered"):
        launch.make_seccomp(RunOptions(security_opt=(options.parse_security_opt(option),)), str)


def test_rates_name_the_device_by_number() -> None:
    asked = RunOptions(device_read_bps=(("/dev/sda", 5),), device_write_iops=(("/dev/sdb", 7),))
    made = launch.make_limits(asked, lambda path: {"/dev/sda": "8:0", "/dev/sdb": "8:16"}[path])
    assert made.io == (Rate("read_bps", "8:0", 5), Rate("write_iops", "8:16", 7))


def test_oom_score_out_of_range_is_refused() -> None:
    assert launch.make_oom_score_adj(RunOptions(oom_score_adj=1000)) == 1000
    with pytest.raises(InvalidOption, match="from -1000 to 1000"):
        launch.make_oom_score_adj(RunOptions(oom_score_adj=1001))


def steps(made: dict[str, object]) -> list[tuple[str, dict[str, object]]]:
    return made["steps"]  # type: ignore[return-value]  # a plan is JSON


def test_plan_sets_sysctls_before_they_become_read_only() -> None:
    names = [name for name, _ in steps(make_plan(spec(sysctls=(("kernel.msgmax", "1"),)), site()))]
    assert names.index("set_sysctl") < names.index("protect")
    assert names.index("enter_root") < names.index("set_sysctl")


def test_privileged_plan_covers_nothing_and_filters_nothing() -> None:
    made = make_plan(spec(privileged=True), site(capabilities=tuple(sorted(EVERYTHING))))
    assert not {"mask", "protect"} & {name for name, _ in steps(made)}
    assert made["process"]["no_new_privileges"] is False
    assert "user" in made["namespaces"]


@pytest.mark.parametrize(("userns", "source"), [("private", "store/containers/x/devices/0"), ("host", "/dev/kvm")])
def test_plan_gives_a_device_as_its_user_namespace_needs_it(userns: str, source: str) -> None:
    made = make_plan(spec(userns=userns, devices=(Device("/dev/kvm", "/dev/k"),)), site())
    assert ("detach_bind", {"name": "device0", "source": source}) in steps(made)
    assert ("attach", {"name": "device0", "target": "/dev/k"}) in steps(made)


def test_plan_is_json_and_carries_the_filter() -> None:
    made = make_plan(spec(), site(seccomp=b"\x01\x02"))
    assert json.loads(json.dumps(made))["process"]["seccomp"] == "0102"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("8:0 Read 5\n8:0 Write 7\n8:16 Read 10\nTotal 22\n", "Read *", 15),
        ("8:0 rbytes=5 wbytes=7 rios=1\n8:16 rbytes=6 wbytes=0\n", "rbytes=*", 11),
        ("8:0 rbytes=5 wbytes=7 rios=1\n", "wbytes=*", 7),
        ("some avg10=0.00 avg60=1.5 total=123\nfull avg10=0.00 total=99\n", "some total=*", 123),
        ("", "rbytes=*", 0),
        ("nr_throttled 4\nthrottled_usec 12\n", "throttled_usec", 12),
        ("max\n", "", None),
    ],
)
def test_reports_of_both_versions_are_read(tmp_path: Path, text: str, key: str, value: int | None) -> None:
    (tmp_path / "file").write_text(text)
    assert cgroup.read({"it": (str(tmp_path / "file"), key, 1)}) == {"it": value}


def test_meter_counts_what_is_on_the_disk_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    empty = meter.bytes_below(str(tmp_path))
    (tmp_path / "d/file").write_bytes(b"x" * 100_000)
    os_size = (tmp_path / "d/file").stat().st_blocks * 512
    (tmp_path / "again").hardlink_to(tmp_path / "d/file")
    (tmp_path / "link").symlink_to("/")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    assert empty + os_size <= meter.bytes_below(str(tmp_path)) < empty + os_size + 65536
