"""Stages run at the same time, as many as there are jobs; a failure or an interrupt ends them all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.build.builder import Builder, BuildEvent, BuildRequest, StepDone, StepError, StepOutput, StepStarted
from sandbox.build.settings import Settings
from sandbox.errors import StepFailed, UnknownStage
from tests.support.building import NOW, Script, Workshop

PATIENCE = 30
TWO = "FROM base AS one\nRUN first\nFROM base AS two\nRUN second\nFROM base\nCOPY --from=one /first /\nCOPY --from=two /second /\n"


def workshop_with(tmp_path: Path, behave: Callable[[str, threading.Event], int]) -> Workshop:
    made = Workshop(tmp_path, Script(behave))
    made.base("base", {"base": "base image"})
    return made


def test_stages_that_do_not_need_each_other_run_at_the_same_time(tmp_path: Path) -> None:
    meeting = threading.Barrier(2)
    workshop = workshop_with(tmp_path, lambda *_: min(0, meeting.wait(PATIENCE)))  # each waits for the other
    tree = workshop.tree(workshop.build(TWO))
    assert [entry.name for entry in tree.scandir("/")] == ["base", "first", "second"]


def test_a_step_waits_only_for_the_stage_it_names(tmp_path: Path) -> None:
    """The last stage's own RUN meets the one of the stage it copies from two lines later."""
    meeting = threading.Barrier(2)
    workshop = workshop_with(tmp_path, lambda *_: min(0, meeting.wait(PATIENCE)))
    workshop.build("FROM base AS one\nRUN first\nFROM base\nRUN own\nCOPY --from=one /first /\n")


class Counting:
    """How many steps ran at once at most."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def __call__(self, _command: str, ended: threading.Event) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        ended.wait(0.02)
        with self.lock:
            self.now -= 1
        return 0


MANY = "".join(f"FROM base AS s{n}\nRUN step {n}\n" for n in range(6)) + "FROM base\n"
MANY += "".join(f"COPY --from=s{n} / /\n" for n in range(6))


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_more_steps_than_jobs_run_at_once(tmp_path: Path, jobs: int) -> None:
    counting = Counting()
    workshop_with(tmp_path, counting).build(MANY, settings=Settings(jobs=jobs))
    assert counting.most <= jobs


def test_a_chain_of_stages_gets_through_with_one_job(tmp_path: Path) -> None:
    workshop = workshop_with(tmp_path, lambda *_: 0)
    text = "FROM base AS s0\nRUN step 0\n" + "".join(f"FROM s{n} AS s{n + 1}\nRUN step {n + 1}\n" for n in range(8))
    assert len(workshop.build(text, settings=Settings(jobs=1)).diff_ids) == 10


def fail_when_both_run(meeting: threading.Barrier) -> Callable[[str, threading.Event], int]:
    def behave(command: str, ended: threading.Event) -> int:
        meeting.wait(PATIENCE)
        if command == "first":
            return 3
        assert ended.wait(PATIENCE), "nobody ended the other stage"
        return 143

    return behave


def test_a_failing_stage_ends_the_others_and_is_the_one_reported(tmp_path: Path) -> None:
    workshop = workshop_with(tmp_path, fail_when_both_run(threading.Barrier(2)))
    with pytest.raises(StepFailed, match="RUN first: exit code 3"):
        workshop.build(TWO)
    assert isinstance(workshop.runtime, Script)
    assert workshop.runtime.signals == [signal.SIGTERM]
    errors = {event.text: event.canceled for event in workshop.events if isinstance(event, StepError)}
    assert errors == {"RUN first": False, "RUN second": True}
    assert list((workshop.root / "store/drafts").iterdir()) == []


def test_a_program_that_does_not_heed_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.build.graph._PATIENCE", 0.01)
    meeting, killed = threading.Barrier(2), threading.Event()

    def behave(command: str, ended: threading.Event) -> int:
        meeting.wait(PATIENCE)
        if command == "first":
            return 3
        assert ended.wait(PATIENCE)
        ended.clear()
        assert ended.wait(PATIENCE), "no second signal came"
        killed.set()
        return 137

    workshop = workshop_with(tmp_path, behave)
    with pytest.raises(StepFailed):
        workshop.build(TWO)
    assert killed.is_set()
    assert isinstance(workshop.runtime, Script)
    assert workshop.runtime.signals[-1] == signal.SIGKILL


def test_an_interrupt_ends_all_stages(tmp_path: Path) -> None:
    def behave(_command: str, ended: threading.Event) -> int:
        assert ended.wait(PATIENCE)
        return 143

    workshop = workshop_with(tmp_path, behave)
    running: list[BuildEvent] = []

    def interrupt(event: BuildEvent) -> None:
        running.append(event)
        if sum(isinstance(each, StepOutput) for each in running) == 2 and isinstance(event, StepOutput):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Builder(workshop.store, workshop.runtime, interrupt).build(BuildRequest(dockerfile=TWO, now=NOW))
    assert sum(isinstance(event, StepError) and event.canceled for event in running) == 2
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("build-")] == []
    assert list((workshop.root / "store/drafts").iterdir()) == []


def test_events_of_steps_that_interleave_say_whose_they_are(tmp_path: Path) -> None:
    meeting = threading.Barrier(2)
    workshop = workshop_with(tmp_path, lambda *_: min(0, meeting.wait(PATIENCE)))
    workshop.build(TWO)
    begun = {event.index: event for event in workshop.events if isinstance(event, StepStarted)}
    for event in workshop.events:
        if isinstance(event, StepOutput):
            assert event.data.decode().strip() == begun[event.index].text.removeprefix("RUN ")
            assert event.stage == begun[event.index].stage
    assert [(e.stage, e.step, e.steps) for _, e in sorted(begun.items())] == [
        ("one", 1, 2), ("one", 2, 2), ("two", 1, 2), ("two", 2, 2), ("2", 1, 3), ("2", 2, 3), ("2", 3, 3),
    ]  # fmt: skip


def test_all_events_are_told_in_the_calling_thread(tmp_path: Path) -> None:
    workshop = workshop_with(tmp_path, lambda *_: 0)
    tellers: set[int] = set()
    Builder(workshop.store, workshop.runtime, lambda _: tellers.add(threading.get_ident())).build(BuildRequest(dockerfile=TWO, now=NOW))
    assert tellers == {threading.get_ident()}


def test_the_same_step_of_two_stages_is_done_once_also_without_the_cache(tmp_path: Path) -> None:
    done: list[str] = []
    workshop = workshop_with(tmp_path, lambda command, _: done.append(command) or 0)  # type: ignore[func-returns-value]
    text = "FROM base AS one\nRUN same\nFROM base AS two\nRUN same\nFROM base\nCOPY --from=one /same /1\nCOPY --from=two /same /2\n"
    workshop.build(text, no_cache=True)
    assert done == ["same"]
    workshop.build(text, no_cache=True)
    assert done == ["same", "same"]
    workshop.build(text)
    assert done == ["same", "same"]
    assert all(event.cached for event in workshop.events if isinstance(event, StepDone))


def test_a_name_that_is_nothing_is_found_before_the_first_step(tmp_path: Path) -> None:
    workshop = workshop_with(tmp_path, lambda *_: 0)
    with pytest.raises(UnknownStage):
        workshop.build(TWO + "COPY --from=7 / /\n")
    assert workshop.events == []
