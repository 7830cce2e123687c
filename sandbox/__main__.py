"""`python -m sandbox`, and the console scripts `sandbox` and `jupyter-sandbox`."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line and exit with its status."""
    gc.set_threshold(50_000)  # tens of thousands of objects come with the imports, and all of them stay
    from sandbox.cli import run

    try:
        status = run(sys.argv[1:])
    finally:
        gc.freeze()  # at exit Python collects twice: it need not look at what the imports made
    sys.exit(status)


if __name__ == "__main__":
    main()
