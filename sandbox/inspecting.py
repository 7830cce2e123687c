"""Parts of docker inspect's shape."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any  # JSON of state.json and inspect

from sandbox.runtime.spec import ContainerSpec, Endpoint, Health, Port


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
