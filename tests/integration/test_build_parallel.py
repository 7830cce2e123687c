"""Stages at the same time for real: an interrupt or a failure leaves no process; two processes make a step once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.build.builder import Builder, BuildEvent, BuildRequest, StepOutput
from sandbox.errors import StepFailed
from tests.support.building import NOW, Workshop
from tests.support.host import requires

# One worker: check_nothing_left looks at the machine's processes, and another test's sleepers are no leftovers of this one.
pytestmark = [pytest.mark.anybody, requires("overlay", "userns", "tool:busybox"), pytest.mark.xdist_group("parallel builds")]

SLEEPERS = """FROM busybox AS one
RUN echo one; exec sleep 4218
FROM busybox AS two
RUN echo two; trap '' TERM; sleep 4219; sleep 4219
FROM busybox
COPY --from=one /etc /1
COPY --from=two /etc /2
"""


def check_nothing_left(workshop: Workshop) -> None:
    assert subprocess.run(["pgrep", "-f", "sleep 421[89]"], capture_output=True, text=True, check=False).stdout == ""
    assert str(workshop.root) not in Path("/proc/self/mountinfo").read_text()
    assert list((workshop.root / "store/drafts").iterdir()) == []
    assert list((workshop.root / "store/containers").iterdir()) == []


def test_interrupt_of_parallel_stages_leaves_no_process_and_no_mount(workshop: Workshop) -> None:
    seen: list[BuildEvent] = []

    def interrupt(event: BuildEvent) -> None:
        seen.append(event)
        if isinstance(event, StepOutput) and sum(isinstance(each, StepOutput) for each in seen) == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Builder(workshop.store, workshop.runtime, interrupt).build(BuildRequest(dockerfile=SLEEPERS, now=NOW))
    check_nothing_left(workshop)


def test_failing_stage_ends_the_program_of_the_other(workshop: Workshop) -> None:
    text = SLEEPERS.replace("RUN echo two; trap '' TERM; sleep 4219; sleep 4219", "RUN exit 5")
    with pytest.raises(StepFailed, match="RUN exit 5: exit code 5"):
        workshop.build(text)
    check_nothing_left(workshop)


BUILDER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from sandbox.build.builder import Builder, BuildRequest, StepDone
from sandbox.image.store import Store
from sandbox.runtime.container import Runtime

root = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
def on_event(event):
    if isinstance(event, StepDone) and event.text.startswith("RUN"):
        print("cached" if event.cached else "made", flush=True)
runtime = Runtime(root)
Builder(Store(root), runtime, on_event).build(BuildRequest(dockerfile=sys.argv[2], now=datetime.now(UTC)))
runtime.close()
"""


def builders(workshop: Workshop, text: str, count: int) -> list[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", BUILDER, str(workshop.root / "store"), text]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [subprocess.Popen(argv, stdin=-1, stdout=-1, text=True, env=environment) for _ in range(count)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    return started


def test_two_processes_that_need_the_same_step_do_it_once(workshop: Workshop) -> None:
    text = "FROM busybox\nRUN sleep 0.3; cat /proc/sys/kernel/random/uuid > /made\n"
    started = builders(workshop, text, 3)
    told = [process.communicate("go\n", timeout=60)[0].split() for process in started]
    assert sorted(told) == [["cached"], ["cached"], ["made"]]
    assert list((workshop.root / "store/flights").iterdir()) == []


def test_the_death_of_the_one_who_makes_a_step_lets_the_next_make_it(workshop: Workshop) -> None:
    text = "FROM busybox\nRUN echo begun; sleep 0.5; echo made > /made\n"
    first, second = builders(workshop, text, 2)
    assert first.stdin is not None
    first.stdin.write("go\n")
    first.stdin.flush()
    flights = workshop.root / "store/flights"
    while not flights.is_dir() or not list(flights.iterdir()):
        assert first.poll() is None
    first.kill()
    first.communicate(timeout=60)
    assert second.communicate("go\n", timeout=60)[0].split() == ["made"]
