"""`exec`: run one more program in a running container, for as long as its client is there."""

from __future__ import annotations

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
        target = os.pidfd_open(self.plan["pid"])
        joins = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in self.plan["joins"]]
        pid1.load_entry(self.plan["process"])
        if os.geteuid() == 0 and (root := procs.root_of(self.plan["pid"])):
            program.give_pipes(self.stdio, root, root)
        self.link, inner = link.pair()
        self.pid = s.clone(0, self.plan["into"])
        if self.pid == 0:
            _enter_and_run(self.plan, inner, self.stdio, joins, target)
        self.pidfd = os.pidfd_open(self.pid)
        inner.close()
        given = set() if self.plan["process"]["tty"] else set(self.stdio)
        self._let_go({*joins, target, *given})
        self._follow_setup()
        self._admit_starter()

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


def _enter_and_run(plan: Mapping[str, Any], outer: socket.socket, stdio: Sequence[int], joins: Sequence[int], target: int) -> None:
    """In the child: join the cgroups, enter every namespace, start the program; never returns."""
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
        code = pid1.serve_program(plan, outer, stdio)
    except program.Refused as err:
        pid1.say(outer, {"event": "refused", "code": err.code, "message": str(err)})
    except OSError as err:
        pid1.say(outer, {"event": "refused", "code": 125, "message": f"exec: {err}", "step": "join", "errno": err.errno})
    finally:
        os._exit(code)
