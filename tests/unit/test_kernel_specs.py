"""kernel.json of kernels in images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kernelspec.imagekernels import ImageKernel
from kernelspec.specs import KernelSpec, with_kernel


@pytest.mark.parametrize(
    ("said", "expected"), [({}, None), ({"supported_encryption": "curve"}, "curve"), ({"supported_encryption": ["curve"]}, "curve")]
)
def test_curve_is_advertised_only_when_the_kernel_in_the_image_speaks_it(said: dict[str, Any], expected: str | None) -> None:
    kernel = ImageKernel("ir", ("R", "{connection_file}"), "R", metadata=said)
    written = with_kernel(KernelSpec("localhost/r", "r", "R"), kernel).kernel_json(Path("/nowhere"))
    assert written["metadata"].get("supported_encryption") == expected
    assert (written["language"], written["metadata"]["debugger"]) == ("R", False)
    assert written["metadata"]["kernel_provisioner"]["config"]["command"] == ["R", "{connection_file}"]


def test_sandbox_kernel_says_what_the_hosts_ipykernel_says() -> None:
    from ipykernel.kernelspec import get_kernel_dict

    said = get_kernel_dict().get("metadata", {}).get("supported_encryption")
    written = KernelSpec("localhost/r", "r", "R", sandbox=True).kernel_json(Path("/nowhere"))
    assert written["metadata"].get("supported_encryption") == said
