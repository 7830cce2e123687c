"""`%stages`: the stages of a Dockerfile and what each takes from others, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from magics.build_view import familiar
from magics.verbs import Listed
from sandbox.build import instructions as ins
from sandbox.build.dockerfile import Dockerfile
from sandbox.cli.formatting import Table


@dataclass
class _Stage:
    """One stage while its instructions are counted."""

    name: str
    base: str
    steps: int = 1
    uses: list[str] = field(default_factory=list)


def list_stages(dockerfile: Dockerfile, image: str) -> Listed:
    """Name, base, steps, the stages and images it copies from; the last one is what `image` was made of."""
    stages: list[_Stage] = []
    for instruction in dockerfile.instructions:
        if isinstance(instruction, ins.From):
            stages.append(_Stage(instruction.name or str(len(stages)), instruction.image))
        elif stages:  # an ARG may stand before the first FROM
            stages[-1].steps += 1
            stages[-1].uses += _origins(instruction)
    names = {str(number): each.name for number, each in enumerate(stages)}  # COPY --from=0 means a stage by its number
    rows = [
        (each.name, each.base, str(each.steps), ", ".join(dict.fromkeys(names.get(use, use) for use in each.uses)), "") for each in stages
    ]
    rows[-1] = (*rows[-1][:4], familiar(image))
    keys = ("Stage", "From", "Steps", "Uses", "Image")
    return Listed(Table(tuple(key.upper() for key in keys), tuple(rows), tuple(dict(zip(keys, row, strict=True)) for row in rows)))


def _origins(instruction: ins.Instruction) -> list[str]:
    """What the instruction reads besides the context."""
    if isinstance(instruction, ins.Copy):
        return [instruction.origin] if instruction.origin else []
    if isinstance(instruction, ins.Run):
        return [mount.origin for mount in instruction.mount_texts if mount.origin]
    return []
