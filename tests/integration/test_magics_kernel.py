"""The magics in a real ipykernel, as a front end sees them: messages, not return values."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from sandbox.engine import Engine
from tests.support.host import requires
from tests.support.kernel import Kernel, started_kernel
from tests.support.leftovers import nothing_left
from tests.support.networked import where_bridges_are

pytestmark = [
    pytest.mark.anybody,
    # zmq's sockets and loops are jupyter_client's to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for the module, with a busybox image."""
    directory = tmp_path_factory.mktemp("magics")
    (directory / "tree/bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", directory / "tree/bin/busybox")
    for name in ("sh", "cat", "cut", "echo", "env", "grep", "id", "nc", "nslookup", "sleep", "tail", "touch"):
        (directory / "tree/bin" / name).symlink_to("busybox")
    subprocess.run(["tar", "-C", str(directory / "tree"), "-cf", str(directory / "rootfs.tar"), "."], check=True)
    root = directory / "state"
    with Engine(root) as engine:
        engine.import_image(directory / "rootfs.tar", "localhost/box", changes=['CMD ["sh"]'])
    with started_kernel("python3", root, directory, env={"SANDBOX_ROOT": str(root)}) as (_, opened):
        assert not [each for each in opened.run("%load_ext sandbox") if each["type"] == "error"]
        yield opened
        assert not [each for each in opened.run("%container network prune -f") if each["type"] == "error"]
    nothing_left(root)


def test_build_then_run(kernel: Kernel) -> None:
    outputs = kernel.run("%%dockerfile -t localhost/built\nFROM localhost/box\nRUN echo made > /made\n")
    assert {"text/plain", "text/html"} <= set(outputs[0]["data"])
    assert kernel.text("%%container localhost/built\ncat /made; echo $0") == "made\nsh\n"


def test_unchanged_step_says_cached(kernel: Kernel) -> None:
    code = "%%dockerfile\nFROM localhost/box\nRUN echo twice > /twice\n"
    kernel.run(code)
    last = [each for each in kernel.run(code) if "data" in each][-1]
    assert last["data"]["text/plain"].count("CACHED") == 2


def test_usage_line_is_the_result(kernel: Kernel) -> None:
    outputs = kernel.run("%%container -m 64m localhost/box\ntrue")
    result = next(each for each in outputs if each["type"] == "execute_result")
    assert result["data"]["text/plain"].startswith("✓ ")
    assert "/ 64 MiB" in result["data"]["text/plain"]
    assert result["metadata"]["org.jupyter.sandbox"]["exit_code"] == 0


def test_stderr_and_exit_code(kernel: Kernel) -> None:
    error = kernel.error("%%container localhost/box\necho bad >&2; exit 3")
    assert error["ename"] == "CellFailed"
    assert error["evalue"] == "sh: exit code 3"
    assert kernel.text("%%container --no-raise-error localhost/box\necho bad >&2; exit 3", "stderr").startswith("bad\n")


def test_memory_limit_is_named_in_the_error(kernel: Kernel) -> None:
    error = kernel.error("%%container -m 32m localhost/box\ntail /dev/zero")
    assert error["evalue"] == "out of memory: killed at the 32 MiB limit"
    assert len(error["traceback"]) == 1


def test_dockerfile_error_has_a_caret_and_a_suggestion(kernel: Kernel) -> None:
    lines = "\n".join(kernel.error("%%dockerfile\nFROM localhost/box\nRAN x\n")["traceback"])
    assert "^^^" in lines
    assert "did you mean RUN?" in lines


@requires("networks")
def test_cells_use_services_by_their_names(kernel: Kernel) -> None:
    kernel.run("%container network create shop")
    for name, port in (("database", 5432), ("cache", 6379)):
        serve = f"nc -ll -p {port} -e /bin/echo {name} of shop"
        kernel.run(f"%container run -d --name {name} --network shop --network-alias {name}.shop localhost/box {serve}")
    ask = "nc -w 5 database 5432 < /dev/null; nc -w 5 cache.shop 6379 < /dev/null"
    heard = kernel.text(f"%%container --network shop localhost/box\n{ask}\n")
    assert heard == "database of shop\ncache of shop\n"
    apart = kernel.run("%%container --network bridge localhost/box\nnc -w 5 database 5432 < /dev/null || echo nobody\n")
    assert "nobody" in "".join(each["text"] for each in apart if each["type"] == "stream")
    kernel.run("%container rm -f database cache")
    assert kernel.text("%container network rm shop") == "shop\n"


@requires("networks")
def test_a_cell_on_a_short_list_says_what_it_was_denied(kernel: Kernel) -> None:
    flags = "--allow-net good.example.test:443,192.0.2.8 --network-rate 8mbit"
    body = "nc -w 1 192.0.2.7 80 < /dev/null || echo refused; nslookup evil.example.test > /dev/null || echo unknown"
    outputs = kernel.run(f"%%container {flags} localhost/box\n{body}\n")
    said = "".join(each["text"] for each in outputs if each["type"] == "stream")
    assert "refused" in said
    assert "unknown" in said
    line = outputs[-1]["data"]["text/plain"]
    assert "net bridge · denied: evil.example.test, 192.0.2.7:80" in line
    kernel.run(f"%%container -d --proc held {flags} localhost/box\nsleep 1000\n")
    kernel.run("facts = held.container.inspect()['HostConfig']")
    facts = kernel.text("print(facts['NetworkRate'], facts['AllowNet'])")
    assert facts == "8000000 ['good.example.test:443', '192.0.2.8/32']\n"
    link = kernel.text("import json; print(held.container._state.facts['network']['places'][0]['link'])").strip()
    queue = json.loads(where_bridges_are(kernel.root, "ip", "-j", "link", "show", link))
    assert queue[0]["qdisc"] == "tbf"
    kernel.run("held.remove()")
    assert "bridge" not in kernel.text("%container network prune -f")  # the default one stays (what it had on this machine goes)


def test_failed_step_shows_its_cell_line_and_output(kernel: Kernel) -> None:
    lines = "\n".join(kernel.error("%%dockerfile\nFROM localhost/box\nRUN echo why; exit 7\n")["traceback"])
    assert "exit code 7" in lines
    assert "  cell line 3 of 3 | step 2/2 | stage 0 | after " in lines
    assert "    2 | FROM localhost/box\n  > 3 | RUN echo why; exit 7\n  last output:" in lines
    assert lines.endswith("  look inside: %%container build:failed")
    assert lines.count("cell line") == 1
    assert "    why" in lines


def test_out_variable_and_expansion(kernel: Kernel) -> None:
    kernel.run("name = 'world'")
    kernel.run("%%container --out said -e WHO={name} localhost/box\necho hello $WHO")
    assert kernel.text("print(repr(said))") == "'hello world\\n'\n"


def test_lists_are_objects_and_failures_are_errors(kernel: Kernel) -> None:
    listed = next(each for each in kernel.run("%container images") if each["type"] == "execute_result")["data"]
    assert "localhost/box" in listed["text/plain"]
    assert "<table" in listed["text/html"]
    rows = kernel.text("listed = %container images\nprint({row['Repository'] for row in listed})")
    assert "'localhost/box'" in rows
    assert "did you mean localhost/box" in kernel.errors("%container rmi localhost/nothin")[0]
    assert kernel.errors("%container logs nobody") == [
        "ContainerNotFound: nobody: no such container\n  hint: `%container ps -a` lists what there is"
    ]
    assert "did you mean images?" in kernel.error("%container imags")["evalue"]
    assert kernel.error("%container rm nobody nothing")["ename"] == "ContainerError"
    assert kernel.text("print((x := get_ipython().run_line_magic('container', 'doctor'))[0]['Ok'])") == "True\n"


def test_a_terminal_is_refused_with_what_to_do_instead(kernel: Kernel) -> None:
    assert "--session NAME" in kernel.errors("%container run -it localhost/box sh")[0]
    assert "-it does nothing here" in kernel.text("%%container -it localhost/box\ntrue", "stderr")


def test_a_program_that_cannot_be_started_says_why(kernel: Kernel) -> None:
    assert (
        kernel.error("%%container -u nobody localhost/box\ntrue")["evalue"] == "user nobody: no matching entry in the image's /etc/passwd"
    )
    missing = kernel.errors("%%container --lang python localhost/box\n1")[0]
    assert missing.startswith("ContainerError: python3: not found in image localhost/box")
    assert missing.endswith("use --shell sh")


def test_a_session_refuses_flags_it_was_not_begun_with(kernel: Kernel) -> None:
    kernel.run("%%container --session f -m 64m -e A=1 localhost/box\necho $A")
    assert "/ 64 MiB" in kernel.run("%%container --session f\necho $A")[-1]["data"]["text/plain"]
    assert kernel.text("%%container --session f -m 64m\necho $A") == "1\n"
    assert kernel.error("%%container --session f -e A=2\necho $A")["evalue"] == "session f: was begun with another --env, or none"
    kernel.run("%container reset f")


def test_exec_in_a_background_container(kernel: Kernel) -> None:
    kernel.run("%container run -d --name bg localhost/box sleep 100")
    try:
        assert kernel.text("%%container exec bg\necho inside") == "inside\n"
    finally:
        kernel.run("%container rm -f bg")
    assert "bg" not in kernel.run("%container ps -a")[0]["data"]["text/plain"]


def test_tab_offers_flags_images_and_instructions(kernel: Kernel) -> None:
    assert "--memory-swap" in kernel.offers("%%container --mem")
    assert "localhost/box" in kernel.offers("%%container --rm local")
    assert kernel.offers("%%dockerfile\nFROM localhost/box\nEN") == ["ENTRYPOINT ", "ENV "]
    assert "images" in kernel.offers("%container im")
    assert kernel.offers("%container image l") == ["load", "ls"]
    assert kernel.offers("%%container --network=n") == ["none"]
    kernel.run("own_variable = 1\n%container volume create kept")
    assert kernel.offers("%%container -i own_v") == ["own_variable"]
    assert kernel.offers("%%container -v k") == kernel.offers("%container volume rm k") == ["kept"]
    kernel.run("%container volume rm kept")
    assert "sys" in kernel.offers("import sy")


def test_question_mark_shows_the_flags(kernel: Kernel) -> None:
    pager = kernel.client.execute_interactive("%%container?", output_hook=print, timeout=60)["content"]["payload"][0]
    at_cursor = kernel.client.inspect("%%container", 5, reply=True, timeout=60)["content"]
    for text in (pager["data"]["text/plain"], at_cursor["data"]["text/plain"]):
        assert "usage: %%container [FLAGS] IMAGE [CMD…]" in text
        assert "--memory" in text
    assert "List containers" in at_cursor["data"]["text/plain"]


def test_sandbox_has_no_network_no_capability_and_a_read_only_root(kernel: Kernel) -> None:
    body = "grep CapEff /proc/self/status; cat /proc/net/dev | tail -n +3 | cut -d: -f1; touch /x; touch /tmp/x && echo tmp"
    text = kernel.text(f"%%sandbox --no-stats localhost/box\n{body}")
    assert text.split() == ["CapEff:", "0000000000000000", "lo", "tmp"]
    assert "Read-only file system" in kernel.text(f"%%sandbox localhost/box\n{body}", "stderr")


def test_interrupt_ends_the_cell_and_leaves_nothing(kernel: Kernel) -> None:
    outputs = kernel.run("%%container localhost/box\necho started; sleep 1000", on_stream=kernel.interrupt)
    error = next(each for each in outputs if each["type"] == "error")
    assert error["ename"] == "KeyboardInterrupt"
    assert len(error["traceback"]) == 1
    with Engine(kernel.root) as engine:
        assert engine.containers(all=True) == []


def test_nothing_runs_after_the_cells(kernel: Kernel) -> None:
    with Engine(kernel.root) as engine:
        assert engine.containers(all=True) == []


def test_files_of_a_build_are_made_of_variables_and_cells_below_keep_them(kernel: Kernel) -> None:
    kernel.run("conf = 'a=1\\n'")
    assert not kernel.errors("%%dockerfile --file etc/app.conf=conf\nFROM localhost/box\nCOPY etc /etc")
    assert not kernel.errors("%%dockerfile -t localhost/conf\nRUN cat /etc/app.conf > /seen")
    assert kernel.text("%%container localhost/conf\ncat /seen") == "a=1\n"


def test_a_failed_install_is_named_and_the_look_inside_works(kernel: Kernel) -> None:
    kernel.run("%%dockerfile\nFROM localhost/box\nRUN echo before > /before")
    missing = "\n".join(kernel.error("%install conda numpy")["traceback"])
    assert missing.endswith("  hint: this image has no conda; one that is made FROM condaforge/miniforge3 has")
    lines = "\n".join(kernel.error("%install pip numpy")["traceback"])
    assert "  %install pip | step 3/3 | stage 0 | after " in lines
    assert "python3: not found" in lines
    assert kernel.text("%%container build:failed\ncat /before") == "before\n"


def test_checks_and_unknown_stages_speak_of_the_cells_lines(kernel: Kernel) -> None:
    assert "WorkdirRelativePath" in (said := kernel.text("%%dockerfile --check\nFROM localhost/box\nWORKDIR x"))
    assert "  cell line 3 of 3\n" in said
    assert kernel.error("%%dockerfile\nFROM localhost/box\nCOPY --from=5 /a /b")["evalue"].startswith("cell line 3 of 3: --from=5")


def test_cells_together_are_a_dockerfile(kernel: Kernel) -> None:
    kernel.run("%%dockerfile\nFROM localhost/box AS one\nRUN true")
    kernel.run("%%dockerfile\nENV A=1")
    assert kernel.text("%dockerfile export whole.Dockerfile\nprint(open('whole.Dockerfile').read())").endswith(
        "FROM localhost/box AS one\nRUN true\nENV A=1\n\n"
    )
    assert kernel.text("for row in get_ipython().run_line_magic('stages', ''): print(row['Stage'], row['Steps'])") == "one 3\n"
    reply = kernel.client.execute_interactive("%dockerfile import whole.Dockerfile", output_hook=print, timeout=60)
    assert reply["content"]["payload"][0]["text"].startswith("%%dockerfile\nFROM localhost/box AS one")


def test_every_verb_that_tells_gives_objects_and_json(kernel: Kernel) -> None:
    kernel.run("%container run -d --name told localhost/box sleep 100")
    try:
        shown = next(each for each in kernel.run("%container inspect told") if each["type"] == "execute_result")["data"]
        assert "<pre" in shown["text/html"]
        assert '"Name": "/told"' in shown["text/plain"]
        for line, said in (
            ("inspect told", "print(x['State']['Running'], x[0]['Name'], len(x))|True /told 1"),
            ("stats told", "print([row['Name'] for row in x])|['told']"),
            ("top told", "print(x[-1]['CMD'])|sleep 100"),
            ("ps --format '{{.Names}}'", "print(list(x))|['told']"),
            ("ps --json", "import json; print(json.loads(x[0])['Names'])|told"),
            ("top told --json", "import json; print(json.loads(x[-1])['CMD'])|sleep 100"),
            ("inspect --json told", "import json; print(json.loads(x[0])[0]['Name'])|/told"),
            ("version --json", "import json; print('Python' in x[0])|True"),
            ("info", "print(x['ContainersRunning'])|1"),
            ("exec told touch /new", "print(x)|None"),
            ("diff told", "print(list(x))|['A /new']"),
        ):
            code, _, expected = said.partition("|")
            assert kernel.text(f"x = %container {line}\n{code}") == expected + "\n", line
    finally:
        kernel.run("%container rm -f told")


def test_what_is_missing_is_an_error_beside_what_was_found(kernel: Kernel) -> None:
    outputs = kernel.run("%container inspect localhost/box localhost/nothing")
    assert any(each["type"] == "stream" and '"localhost/box:latest"' in each["text"] for each in outputs)
    assert any(each["type"] == "stream" and "localhost/nothing: no such" in each["text"] for each in outputs)
    assert outputs[-1]["type"] == "error"


def test_prune_asks_the_person_and_says_when_nobody_can_be_asked(kernel: Kernel) -> None:
    kernel.run("%container run --name stopped localhost/box true")
    assert "nobody can be asked" in kernel.text("%container container prune", "stderr")
    kernel.run("%container container prune", on_input=lambda _: kernel.client.input("y"))
    assert kernel.text("print(len(get_ipython().run_line_magic('container', 'ps -a')))") == "0\n"


def test_a_shell_session_keeps_variables_functions_and_directory(kernel: Kernel) -> None:
    assert not kernel.errors("%%container --session w localhost/box\nX=5; cd /bin; f() { echo f$1; }")
    assert kernel.text("%%container --session w\necho $X $(pwd); f 3") == "5 /bin\nf3\n"
    assert kernel.error("%%container --session w\nexit 3")["evalue"] == "sh: exit code 3"
    outputs = kernel.run("%%container --session w\necho up; sleep 1000", on_stream=kernel.interrupt)
    assert "session w keeps its state" in outputs[-1]["traceback"][0]
    assert kernel.error("%%container --session w --timeout 200ms\nsleep 1000")["evalue"].startswith("interrupted: ran longer than")
    assert kernel.text("%%container --session w\necho $X") == "5\n"
    assert "runs sh, not python3" in kernel.error("%%container --session w --lang python\nx")["evalue"]
    kernel.run("%container reset w")
    assert "not there yet" in kernel.error("%%container --session w\necho $X")["evalue"]


def test_a_language_without_a_runner_keeps_files_and_directory(kernel: Kernel) -> None:
    assert kernel.text("%%container --session c localhost/box cat\nbody\n  text") == "body\n  text\n"
    kernel.run("%%container --session c --lang sh\ncd /bin; echo kept > /file")
    assert kernel.text("%%container --session c localhost/box cat /file -\nmore") == "kept\nmore\n"
    kernel.run("%container reset c")


def test_out_of_a_session_shows_what_each_cell_left_and_saves_it(kernel: Kernel) -> None:
    first = kernel.run("%%container --session o localhost/box\necho a > /out/a.txt")
    second = kernel.run("%%container --session o --save-files kept\necho b > /out/b.txt; cat /out/a.txt")
    shown = [[each["data"]["text/plain"] for each in outputs if each["type"] == "display_data"] for outputs in (first, second)]
    assert shown == [["a\n"], ["b\n"]]
    assert kernel.text("import os; print(os.listdir('kept'))") == "['b.txt']\n"
    assert list((kernel.root / "out").iterdir())
    kernel.run("%container reset o")
    assert not list((kernel.root / "out").iterdir())
