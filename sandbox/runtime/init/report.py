"""What is said of a container: its state.json, its events, and that it is gone."""

from __future__ import annotations

import os

from sandbox.runtime.init import files, journal, naming

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sandbox.runtime.init import supervisor


def record(plan: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write state.json; that the directory is gone (`rm -f` by another process) ends the record, not the clean-up."""
    if not plan["record"]:
        return
    try:
        files.write_json(plan["directory"] + "/state.json", state)
    except FileNotFoundError:
        return


def running_state(container: supervisor.Container) -> dict[str, Any]:
    """What state.json says of a running container: enough to enter, measure and stop it without its supervisor."""
    group = container.plan["cgroup"]
    return {
        "status": "running",
        "pid": container.pid,
        "supervisor": os.getpid(),
        "started": container.started,
        "namespaces": [*container.plan["namespaces"], *(["cgroup"] if container.plan["cgroup_namespace"] else [])],
        "joins": [path for path in group["joins"] if path != group["slow_join"]] if group else [],
        "report": group["report"] if group else [],
        "groups": group["groups"] if group else [],
        "stubs": container.stubs,
        "into": group["into"] if group else None,
        "cgroup": group,
        "health": container.health.state if container.health else None,
        "network": container.plan["network"],
        "shares": {name: container.plan[name] for name in ("idmap", "texts")},
    }


def note(plan: Mapping[str, Any], action: str, **more: object) -> None:
    """An event of this container."""
    if plan["told"]:
        attributes = {**plan["told"]["attributes"], **{name: str(each) for name, each in more.items()}}
        journal.note(plan["told"]["root"], "container", action, plan["id"], attributes)


def note_end(plan: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    if result["event"] != "exited":
        return
    if result["used"].get("oom_kills"):
        note(plan, "oom")
    code = os.waitstatus_to_exitcode(result["wait_status"])
    note(plan, "die", exitCode=code if code >= 0 else 128 - code)


def bury_container(plan: Mapping[str, Any]) -> str:
    """From now on the container is gone, and its name free; the directory to delete. Our lock in it says that we are at it."""
    if plan["name"] and not naming.give_up(plan["name"], plan["id"]):  # it was renamed
        record = files.read_json(f"{plan['directory']}/config.json")
        if record is not None:  # else `rm -f` is at it
            naming.give_up(f"{os.path.dirname(plan['name'])}/{record['name']}", plan["id"])
    try:
        os.makedirs(os.path.dirname(plan["grave"]), 0o700, exist_ok=True)
        os.rename(plan["directory"], plan["grave"])
    except FileNotFoundError:
        return ""  # `rm -f` by another process was quicker
    return str(plan["grave"])
