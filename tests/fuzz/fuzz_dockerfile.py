"""Coverage-guided fuzzing of the Dockerfile parser, the printer and the checks (atheris, on libFuzzer).

    python -m tests.fuzz.fuzz_dockerfile [-max_total_time=600] [-runs=…] CORPUS_DIRECTORY

Whatever text comes: it parses or is a DockerfileError, it means the same when printed, and the checks end. A text that breaks
this is written to ./crash-…; put it into tests/golden/build as a new case.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sandbox.build", "e2b_dockerfile_utils"]):
    from sandbox.build.checks import Surroundings, check
    from sandbox.build.dockerfile import parse
    from sandbox.errors import DockerfileError
    from tests.support.dockerfile_meaning import check_text

AROUND = Surroundings(build_args={"A": "1"}, predefined={"TARGETPLATFORM": "linux/amd64", "TARGETOS": "linux", "TARGETARCH": "amd64"})
GOLDEN = Path(__file__).parents[1] / "golden" / "build"
WORDS = (
    "FROM ", "RUN ", "COPY ", "ADD ", "ENV ", "ARG ", "LABEL ", "ONBUILD ", "HEALTHCHECK ", "CMD ", "SHELL ", "VOLUME ", "EXPOSE ",
    "<<EOF", "<<-'EOF'", "EOF\n", "--mount=", "--from=", "--chmod=", "--exclude=", "--link", "--parents", "type=cache", "target=",
    "${A:-", "# escape=`", "# syntax=docker/dockerfile:1", "# check=skip=all", " AS ", "\\\n", '["', '"]',
)  # fmt: skip


def one_input(data: bytes) -> None:
    """What the fuzzer calls."""
    text = data.decode("utf-8", "surrogateescape")
    if check_text(text) is None:
        return
    try:
        check(parse(text), AROUND)
    except DockerfileError:
        pass  # options of a check that cannot be meant


def seed(corpus: Path) -> None:
    """The golden files as a start, and a dictionary of the language's words."""
    corpus.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(GOLDEN.glob("*/*/Dockerfile"))):
        (corpus / f"golden-{number}").write_bytes(path.read_bytes())
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word.encode()) + '"' for word in WORDS]
    corpus.with_suffix(".dict").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run until told to stop."""
    corpus = Path(sys.argv[-1])
    seed(corpus)
    options = [word for word in sys.argv[1:-1] if word.startswith("-")]
    atheris.Setup([sys.argv[0], "-max_len=2000", f"-dict={corpus.with_suffix('.dict')}", *options, str(corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
