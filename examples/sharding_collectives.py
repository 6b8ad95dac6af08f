"""The collectives of compiled programs: what they send, how often they run, what they wait for.

A loop has its collectives once in the text of a program. Here they count as often as it runs.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Bytes that a device sends for each byte of the result, over n devices, as rings send them.
SENT = {
    "collective-permute": lambda n: 1.0,
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1.0,
    "all-reduce": lambda n: 2 * (n - 1) / n,
}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}

COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \([^\n]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
COLLECTIVE = re.compile(rf"%(\S+) = (.+?) ({'|'.join(SENT)})(-start)?\(")
WHILE = re.compile(r" while\(%(\S+)\), condition=%([\w.-]+), body=%([\w.-]+)")
CALLED = re.compile(r"(?:calls|to_apply|body)=%([\w.-]+)|branch_computations=\{([^}]*)\}")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")

Computations = dict[str, list[str]]


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
      kind: Such as `"collective-permute"`.
      size: Bytes of its result on one device.
      devices: Number of devices in a group, of kinds other than `"collective-permute"`.
      times: How often it runs.
      is_overlapped: Whether matrix products are computed between its start and its end.
    """

    kind: str
    size: int
    devices: int
    times: int
    is_overlapped: bool

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all runs."""
        return self.times * self.size * SENT[self.kind](self.devices)


# Matrix products, and kernels that compute them.
PRODUCTS = (" convolution(", " dot(", '"tpu_custom_call"', '"__cudnn$fmha')


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, by its text."""
    computations = split(text)

    @functools.cache
    def multiplies(name: str) -> bool:
        return any(map(is_product, computations[name]))

    def is_product(line: str) -> bool:
        return any(x in line for x in PRODUCTS) or any(map(multiplies, called(line)))

    def inside(name: str, times: int) -> Iterator[Collective]:
        lines = computations[name]
        for number, line in enumerate(lines):
            if match := COLLECTIVE.search(line):
                own, shapes, kind, start = match.groups()
                if "chain_id=" in line and "AsyncCollectiveStart" not in lines[-1]:
                    continue  # a later part of one that began in another computation
                meanwhile = any(map(is_product, until_done(lines[number + 1 :], kind, own)))
                size, devices = result_bytes(shapes, kind, bool(start)), group_size(line)
                if name.startswith("all-reduce-scatter"):  # TPUs do not reduce what they drop
                    kind, size = "reduce-scatter", size // devices
                yield Collective(kind, size, devices, times, meanwhile)
                continue
            found = [x for name in called(line) for x in inside(name, times)]
            if found and (match := WHILE.search(line)):
                trips = trip_count(computations, name, line, *match.groups()[:2])
                found = [x._replace(times=x.times * trips) for x in found]
            yield from found

    return list(inside(re.search(r"^ENTRY %(\S+)", text, re.MULTILINE).group(1), 1))


def until_done(lines: list[str], kind: str, start: str) -> list[str]:
    """The instructions between the start of a collective and its end, if they are apart."""
    end = next((i for i, line in enumerate(lines) if f" {kind}-done(%{start})" in line), 0)
    return lines[:end]


def split(text: str) -> Computations:
    """The lines of each computation."""
    return {name: body.splitlines() for name, body in COMPUTATION.findall(text)}


def called(line: str) -> list[str]:
    """The computations that an instruction calls."""
    names = " ".join(one or several for one, several in CALLED.findall(line))
    return re.findall(r"[\w.-]+", names)


def result_bytes(shapes: str, kind: str, is_start: bool) -> int:
    """Bytes of a result. The start of a collective has its operands too, and contexts."""
    sizes = [
        BYTES[dtype] * math.prod(int(n) for n in sides.split(",") if n)
        for dtype, sides in ARRAY.findall(shapes)
        if sides or not is_start
    ]
    if is_start and kind == "collective-permute":
        return sum(sizes) // 2
    return max(sizes) if is_start and kind == "all-gather" else sum(sizes)


def group_size(line: str) -> int:
    """The number of devices in a group of a collective."""
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
        return math.prod(int(sides[axis]) for axis in re.findall(r"'(\w+)'", match.group(2)))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match.group(1))
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match.group(1).split(","))
    return 1


def trip_count(computations: Computations, name: str, line: str, start: str, condition: str) -> int:
    """How often a loop runs whose counter goes up by one, between known numbers."""
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(match.group(1))
    test = computations[condition]
    compare = next(line for line in test if "ROOT" in line)
    counter, limit = re.search(r" compare\(%(\S+), %(\S+)\), direction=LT", compare).groups()
    index = int(re.search(r" index=(\d+)", definition(test, counter)).group(1))
    first = operands(computations[name], start)[index]
    return constant(test, limit) - constant(computations[name], first)


def definition(lines: list[str], name: str) -> str:
    return next(line for line in lines if f"%{name} = " in line)


def operands(lines: list[str], name: str) -> list[str]:
    arguments = re.search(r" (?:tuple|copy)\((.*?)\)", definition(lines, name)).group(1)
    return re.findall(r"%([\w.-]+)", arguments)


def constant(lines: list[str], name: str) -> int:
    """The value of a constant, or of a copy of one."""
    if match := re.search(r" constant\((-?\d+)\)", definition(lines, name)):
        return int(match.group(1))
    return constant(lines, operands(lines, name)[0])
