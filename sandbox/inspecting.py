"""A container in docker inspect's shape."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any  # JSON of state.json and inspect

from sandbox.records import ALIVE, Record, State
from sandbox.runtime.spec import Completed, ContainerSpec, Endpoint, Health, Mount, Port


def inspected(record: Record, state: State, done: Completed | None, root: Path) -> dict[str, object]:
    """docker inspect's shape of a container. `done`: how it ended; `root`: the engine's directory."""
    spec = record.spec
    network = state.facts.get("network") if state.has_processes else None
    return {
        "Id": record.id,
        "Created": iso_time(record.created),
        "Path": spec.process.argv[0],
        "Args": list(spec.process.argv[1:]),
        "State": {
            "Status": state.status,
            "Running": state.status in ALIVE,
            "Paused": state.status == "paused",
            "Restarting": state.status == "restarting",
            "OOMKilled": bool(done and done.why == "oom"),
            "Pid": int(state.facts["pid"]) if state.has_processes else 0,
            "ExitCode": done.exit_code if done else 0,
            "Error": done.reason if done else "",
            **({"NetworkDenied": list(done.denied)} if done and done.denied else {}),
            "StartedAt": iso_time(state.facts.get("started")),
            "FinishedAt": iso_time(state.facts.get("finished")),
            **health_rows(state.facts.get("health")),
        },
        "Image": record.image_id,
        "Name": f"/{record.name}",
        "RestartCount": int(state.facts.get("restarts", 0)),
        "LogPath": str(root / "containers" / record.id / "log.json") if record.log.driver == "json-file" else "",
        "HostConfig": {
            "LogConfig": {"Type": record.log.driver, "Config": record.log.config()},
            "NetworkMode": spec.network,
            "AutoRemove": record.auto_remove,
            "RestartPolicy": {"Name": record.restart[0], "MaximumRetryCount": record.restart[1]},
            "ReadonlyRootfs": spec.read_only,
            "Memory": spec.limits.memory or 0,
            "MemorySwap": spec.limits.memory_swap or 0,
            "NanoCpus": round((spec.limits.cpus or 0) * 1e9),
            "CpusetCpus": spec.limits.cpuset_cpus or "",
            "PidsLimit": spec.limits.pids,
            "CapAdd": list(spec.cap_add),
            "CapDrop": list(spec.cap_drop),
            "ShmSize": spec.shm_size,
            "NetworkRate": spec.network_rate or 0,
            "AllowNet": [str(allowed) for allowed in spec.allow_net],
            "UsernsMode": spec.userns,
        },
        "Mounts": [_mount_row(mount, root) for mount in spec.mounts],
        "NetworkSettings": network_settings(spec, network),
        "Config": {
            "Hostname": spec.hostname,
            "User": spec.process.user,
            "Tty": spec.process.tty,
            "OpenStdin": record.interactive,
            "Env": [f"{name}={value}" for name, value in spec.process.env],
            "Cmd": list(spec.process.argv),
            "Image": record.image_name,
            "WorkingDir": spec.process.cwd,
            "Labels": dict(record.labels),
            "StopSignal": signal.Signals(spec.stop_signal).name,
            "StopTimeout": int(record.stop_timeout),
            **({"Healthcheck": healthcheck(spec.health)} if spec.health else {}),
        },
    }


def _mount_row(mount: Mount, root: Path) -> dict[str, Any]:
    """docker's mount point; a volume has a name."""
    place = Path(mount.source)
    is_volume = mount.kind == "bind" and place.name == "_data" and place.parents[1] == root / "volumes"
    kind = {"Type": "volume", "Name": place.parent.name} if is_volume else {"Type": mount.kind}
    return {**kind, "Source": mount.source, "Destination": mount.target, "RW": not mount.read_only}


def network_settings(spec: ContainerSpec, network: Mapping[str, Any] | None) -> dict[str, Any]:
    """docker's NetworkSettings."""
    given = network or {}
    places = {place["name"]: place for place in given.get("places", ())}
    rows = {endpoint.network: _endpoint_settings(endpoint, places.get(endpoint.network, {})) for endpoint in spec.places}
    first = next(iter(rows.values()), _endpoint_settings(Endpoint(""), {}))
    ports: dict[str, list[dict[str, str]]] = {}
    for port in (Port(**each) for each in given.get("ports", ())):
        ports.setdefault(f"{port.container}/{port.protocol}", []).append({"HostIp": port.address, "HostPort": str(port.host)})
    top = {name: value for name, value in first.items() if name not in ("Aliases", "DNSNames", "GwPriority", "IPAMConfig")}
    others = {"host": {"host": _endpoint_settings(Endpoint(""), {})}}
    return {**top, "Ports": ports, "Networks": rows or others.get(spec.network, {})}


def _endpoint_settings(endpoint: Endpoint, place: Mapping[str, Any]) -> dict[str, Any]:
    """docker's EndpointSettings; addresses only while it runs."""
    gateways = {":" in each: each for each in place.get("gateways", ())}
    wanted = {"IPv4Address": endpoint.address, "IPv6Address": endpoint.address6}
    return {
        "IPAMConfig": {name: value for name, value in wanted.items() if value} or None,
        "Aliases": list(endpoint.names[1:]),
        "DNSNames": list(endpoint.names),
        "GwPriority": endpoint.priority,
        "IPAddress": place.get("address", ""),
        "IPPrefixLen": place.get("prefix", 0),
        "Gateway": gateways.get(False, ""),
        "GlobalIPv6Address": place.get("address6", ""),
        "GlobalIPv6PrefixLen": place.get("prefix6", 0),
        "IPv6Gateway": gateways.get(True, ""),
        "MacAddress": place.get("mac", ""),
    }


def healthcheck(health: Health) -> dict[str, Any]:
    """docker's Config.Healthcheck; times in nanoseconds."""
    times = {
        "Interval": health.interval,
        "Timeout": health.timeout,
        "StartPeriod": health.start_period,
        "StartInterval": health.start_interval,
    }
    return {"Test": ["CMD", *health.argv], **{name: round(each * 1e9) for name, each in times.items()}, "Retries": health.retries}


def health_rows(facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """docker's State.Health; nothing without a check."""
    if not facts:
        return {}
    results = [
        {"Start": iso_time(each["started"]), "End": iso_time(each["finished"]), "ExitCode": each["code"], "Output": each["output"]}
        for each in facts["results"]
    ]
    return {"Health": {"Status": facts["status"], "FailingStreak": facts["streak"], "Log": results}}


def iso_time(seconds: float | None) -> str:
    """docker's: seconds since 1970 in RFC 3339; the year 1 for never."""
    return datetime.fromtimestamp(seconds or 0, UTC).isoformat().replace("+00:00", "Z") if seconds else "0001-01-01T00:00:00Z"
