"""--restart: whether and when a container that ended runs again."""

from __future__ import annotations

from sandbox.runtime.init import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from sandbox.runtime.init import clients

_FIRST_DELAY, _LONGEST_DELAY, _RAN_WELL = 0.1, 60.0, 10.0
"""docker's back-off: 100 ms, doubled up to a minute, from the beginning again after a run of ten seconds."""


class Restarts:
    """Counts the runs. `stop` and `kill` say so at its door: then it does not."""

    def __init__(self, plan: Mapping[str, Any], door: clients.Door) -> None:
        self._policy, self._most = plan["restart"]
        self._door = door
        self._delay = _FIRST_DELAY
        self.count = 0

    def delay(self, result: Mapping[str, Any]) -> float | None:
        """Seconds until the next run; None: there is none."""
        if self.is_stopped_within(0) or result["event"] == "refused" or result["ending"] == "interrupted":
            return None
        if self._policy == "on-failure" and (result["wait_status"] == 0 or 0 < self._most <= self.count):
            return None
        self._delay = _FIRST_DELAY if result["wall"] >= _RAN_WELL or not self.count else min(2 * self._delay, _LONGEST_DELAY)
        return self._delay

    def is_stopped_within(self, seconds: float) -> bool:
        """Wait so long for somebody who wants it stopped; whether somebody does."""
        self._door.wait(seconds)
        return self._door.is_stopped


def in_other_networks(plan: Mapping[str, Any], now: Sequence[places.Place], renew: Callable[[str], str]) -> dict[str, Any]:
    """What of the plan of the next run is different when it is in these places; `renew` changes its /etc/hosts."""
    texts = {**plan["texts"], "hosts": renew(plan["texts"]["hosts"])}
    renewed = {"configure_links": {"links": places.links(now)}}
    steps = []
    for name, arguments in plan["steps"]:
        if name == "write_file" and arguments["name"] == "hosts":
            arguments = {**arguments, "text": texts["hosts"]}
        steps.append([name, renewed.get(name, arguments)])
    return {"steps": steps, "texts": texts}
