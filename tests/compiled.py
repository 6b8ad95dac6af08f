"""What a compiled program does between devices, and what memory it takes."""

import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
LINE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\(")


def collectives(compiled) -> list[tuple[str, int]]:
    """`every_collective` but those of up to four elements, such as the sum of a loss."""
    return [(kind, size) for kind, size in every_collective(compiled) if size > 4]


def every_collective(compiled) -> list[tuple[str, int]]:
    """The kind and the number of elements of every array that passes between devices."""
    return sorted(
        (kind, math.prod(int(n) for n in shape.split(",") if n))
        for shapes, kind in LINE.findall(compiled.as_text())
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)
    )


def temporaries(compiled) -> int:
    """Bytes of the largest set of temporaries on one device."""
    return compiled.memory_analysis().temp_size_in_bytes
