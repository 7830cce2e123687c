"""What a supervisor reports of a container that could not be set up, or has ended, as our errors and `Completed`."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any  # reports are JSON

from sandbox.errors import PortTaken, SetupFailed, Unsupported
from sandbox.runtime import cgroups
from sandbox.runtime.spec import Completed, Limits, Usage, Why

_MIB = 1 << 20


def raise_refused(message: Mapping[str, Any]) -> None:
    """The error for a supervisor's `refused`: 126 and 127 are results, not errors, and pass."""
    if message["event"] == "lost":
        raise SetupFailed("supervisor: killed while the container was set up")
    if message["code"] == 125:
        if message.get("taken"):
            raise PortTaken(message["message"], port=message["taken"][0], protocol=message["taken"][1])
        if message.get("errno") in (1, 38, 95):  # EPERM, ENOSYS, EOPNOTSUPP
            raise Unsupported(
                message["message"], feature=str(message.get("step")), hint="run `sandbox doctor` to see what this host allows"
            )
        raise SetupFailed(message["message"])


def completed(report: Mapping[str, Any], limits: Limits, timeout: float | None) -> Completed:
    """A supervisor's last report, or a container's state.json, as Completed."""
    if report["event"] == "refused":
        return Completed(exit_code=int(report["code"]), why="exited", reason=str(report["message"]))
    if report["event"] == "detached":
        return Completed(exit_code=0, why="detached", reason="detached: it goes on")
    if report["event"] == "lost":
        return Completed(exit_code=137, why="lost", signal=9, reason="its supervisor was killed")
    code = os.waitstatus_to_exitcode(report["wait_status"])
    number = -code if code < 0 else None
    why, reason = _explain(code, report, limits, timeout)
    exit_code = 124 if why == "timeout" else 128 + number if number else code
    denied = tuple(report.get("denied", ()))
    return Completed(exit_code=exit_code, why=why, reason=reason, signal=number, usage=_usage(report), denied=denied)


def _usage(report: Mapping[str, Any]) -> Usage:
    used = cgroups.reading(report["used"])
    return Usage(
        wall=float(report["wall"]), cpu=used.cpu, peak_memory=used.peak_memory, peak_pids=used.peak_pids, throttled=used.throttled,
        io_read=used.io_read, io_written=used.io_written, cpu_stall=used.cpu_stall, memory_stall=used.memory_stall, io_stall=used.io_stall,
    )  # fmt: skip


def _explain(code: int, report: Mapping[str, Any], limits: Limits, timeout: float | None) -> tuple[Why, str]:
    """Why a container ended, most telling first."""
    ending, used = report["ending"], report["used"]
    if ending == "timeout":
        return "timeout", f"stopped: ran longer than --timeout {timeout:g}s"
    if ending == "interrupted":
        return "interrupted", "interrupted"
    if ending == "disk":
        return "disk", f"disk full: wrote more than --storage-opt size={_mib(report['storage_size'])}"
    if ending == "output":
        return "output", f"stopped: printed more than --output-limit {_mib(report['output_limit'])}"
    if code != 0 and used.get("oom_kills"):
        return "oom", f"out of memory: killed at the {_mib(limits.memory)} limit"
    if code != 0 and used.get("pids_refused"):
        return "pids", f"process limit reached (--pids-limit {limits.pids})"
    if code < 0:
        return "signal", f"killed by {signal.Signals(-code).name}"
    return "exited", ""


def _mib(size: int | None) -> str:
    if size is None:
        return "host's"
    return f"{size // _MIB} MiB" if size % _MIB == 0 else f"{size / _MIB:.1f} MiB"
