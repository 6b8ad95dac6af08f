"""What a compiled program does between devices, and what memory it takes."""

import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
LINE = re.compile(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\(")


def collectives(compiled) -> list[tuple[str, int]]:
    """The kind and the number of elements of every array that passes between devices.

    Arrays of up to four elements, such as the sum of a loss, are left out.
    """
    found = []
    for shapes, kind in LINE.findall(compiled.as_text()):
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes):
            elements = math.prod(int(n) for n in shape.split(",") if n)
            if elements > 4:
                found.append((kind, elements))
    return sorted(found)


def temporaries(compiled) -> int:
    """Bytes of the largest set of temporaries on one device."""
    return compiled.memory_analysis().temp_size_in_bytes
