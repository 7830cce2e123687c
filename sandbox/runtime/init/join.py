"""`exec`: run one more program in a running container, for as long as its client is there.

Where we may, the program is the supervisor's own child, born in the container's PID namespace. An ordinary user has to enter the user
namespace before any other, and a terminal is opened inside: then a process of ours stays between, as init does beside its program.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time

from sandbox.runtime.init import hostside, link, pid1, procs, program, supervisor, title
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from sandbox.runtime.init import ground


class Joined(supervisor.Container):
    """The supervisor of an exec: enters the namespaces instead of making them, and owns no cgroup."""

    def start(self) -> None:
        """Until the program runs inside; hostside.Refused when it does not."""
        process = self.plan["process"]
        target = os.pidfd_open(self.plan["pid"])
        joins = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in self.plan["joins"]]
        pid1.load_entry(process)
        if os.geteuid() == 0 and (root := procs.root_of(self.plan["pid"])):
            program.give_pipes(self.stdio, root, root)
        self.is_program = os.geteuid() == 0 and not (process["tty"] or process["unpack"] or process["pack"])
        if self.is_program:
            s.setns(target, s.CLONE_NEWPID)  # of our children
        self.link, inner = link.pair()
        self.pid = s.clone(0, self.plan["into"])
        if self.pid == 0:
            _enter_and_run(self.plan, inner, self.stdio, joins, target, between=not self.is_program)
        self.pidfd = os.pidfd_open(self.pid)
        inner.close()
        given = set() if process["tty"] else set(self.stdio)
        self._let_go({*joins, target, *given})
        if self.is_program:
            self._follow_exec()
        else:
            self._follow_setup()
        self._admit_starter()

    def _follow_exec(self) -> None:
        """Its end of the link is closed by execve(2), or by the end of what could not come to that."""
        message, _ = link.receive(self.link)
        if message is not None:
            raise hostside.Refused(message)
        self.reported = -1  # it says nothing of its end: we are its parent
        self.started = time.time()

    def _died_in_setup(self) -> dict[str, Any]:
        return {"event": "refused", "code": 125, "message": "the container ended meanwhile", "step": "join", "errno": None}


def run(orders: int, client: socket.socket, stdio: Sequence[int], shown: title.Title, spare: ground.Spare | None = None) -> None:
    """Supervise one exec; nothing is recorded on disk."""
    if spare is not None:
        spare.discard()
    joined = Joined(link.read_plan(orders), client, stdio, shown)
    try:
        joined.start()
        supervisor.tell_started(joined)
        joined.watch()
        result = joined.finish()
    except hostside.Refused as err:
        result = err.message
    except OSError as err:
        result = {"event": "refused", "code": 125, "message": str(err), "step": "join", "errno": err.errno}
    joined.clean_up()
    supervisor.tell(joined, {**result, "finished": time.time()})


def _enter_and_run(
    plan: Mapping[str, Any], outer: socket.socket, stdio: Sequence[int], joins: Sequence[int], target: int, *, between: bool
) -> None:
    """In the child: join the cgroups, enter every namespace, become the program or start it (`between`); never returns."""
    code = 125
    try:
        pid1.close_others({0, 1, 2, outer.fileno(), *stdio, *joins, target})
        for fd in joins:
            os.write(fd, b"0")
            os.close(fd)
        s.prctl(s.PR_SET_DUMPABLE, 0)  # before the container can see us (CVE-2016-9962)
        pid1.forget_imports()
        s.setns(target, hostside.flags_of(plan["namespaces"]))
        os.close(target)
        os.setgid(0)
        os.setuid(0)
        pid1.leave_keyring()
        s.prctl(s.PR_SET_PDEATHSIG, signal.SIGKILL)
        s.prctl(s.PR_SET_DUMPABLE, 0)
        if between:
            code = pid1.serve_program(plan, outer, stdio)
        else:
            outer = _out_of_the_way(outer)
            program.Program(plan["process"]).become(stdio)
    except program.Refused as err:
        pid1.say(outer, {"event": "refused", "code": err.code, "message": str(err)})
    except OSError as err:
        pid1.say(outer, {"event": "refused", "code": 125, "message": f"exec: {err}", "step": "join", "errno": err.errno})
    finally:
        os._exit(code)


def _out_of_the_way(end: socket.socket) -> socket.socket:
    """The same, above what becomes the program's descriptors."""
    with end:
        return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 16))
