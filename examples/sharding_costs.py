"""What sharded attention costs: bytes sent, memory, FLOPs, and the time that TPUs need for them.

T tokens, N query heads, K key heads, D head size. Numbers are those of one layer.
`examples/sharding_report.py` prints them, and compares them with compiled programs.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Attention(NamedTuple):
    """One call of causal attention in bfloat16.

    Attributes:
      tokens: T, of the whole sequence.
      heads: N.
      key_heads: K.
      head_dim: D, of keys and of values.
      backward: Whether its gradient is computed too.
      coordinates: Bytes of the coordinates of a key: its position and its document.
    """

    tokens: int
    heads: int = 8
    key_heads: int = 8
    head_dim: int = 128
    backward: bool = True
    coordinates: int = 8

    @property
    def flops(self) -> float:
        """FLOPs of the matrix products of all chips: two forward, five backward.

        Each is 2 · D for each pair of a query and a key that it sees, of which there are T² / 2.
        """
        products = 7 if self.backward else 2
        return products * 2 * self.heads * self.head_dim * self.tokens**2 / 2

    @property
    def key_bytes(self) -> int:
        """Bytes of a key and a value of one token, with their coordinates."""
        return 2 * self.key_heads * self.head_dim * HALF + self.coordinates

    @property
    def key_gradient_bytes(self) -> int:
        """Bytes of the gradients of a key and a value, which are summed in float32."""
        return 2 * self.key_heads * self.head_dim * SINGLE

    @property
    def row_bytes(self) -> int:
        """Bytes of a query, a key, a value and an output of one token."""
        return 2 * (self.heads + self.key_heads) * self.head_dim * HALF


HALF, SINGLE = 2, 4  # bytes of a number in bfloat16 and in float32


class Transfer(NamedTuple):
    """What one chip sends.

    Attributes:
      kind: `"neighbour"` sends to the next chip of a ring, over one link. `"gather"` sends along
        all axes of the torus in both directions. `"exchange"` sends another part to each chip.
      size: Bytes.
      chips: Number of chips that take part.
    """

    kind: str
    size: float
    chips: int


def ring(call: Attention, chips: int) -> list[Transfer]:
    """Keys visit all chips, in the backward pass once more, followed by the sum of their gradients.

    The sums go once round in float32. From the last chip they go home in bfloat16. They begin with
    zeros, which XLA does not send if there are only two chips.
    """
    block = call.tokens / chips
    hops = chips if chips > 2 else 1
    size = (chips - 1) * block * call.key_bytes
    if call.backward:
        size *= 2
        size += block * call.key_gradient_bytes * (hops + HALF / SINGLE)
    return [Transfer("neighbour", size, chips)]


def all_gather(call: Attention, chips: int) -> list[Transfer]:
    """Each chip gets all keys. In the backward pass it gets the sum of its keys' gradients."""
    size = (chips - 1) / chips * call.tokens * call.key_bytes
    if call.backward:
        size += (chips - 1) / chips * call.tokens * call.key_gradient_bytes
    return [Transfer("gather", size, chips)]


def ulysses(call: Attention, chips: int) -> list[Transfer]:
    """Each chip gets all tokens of some heads, and sends their outputs back."""
    check_heads(call, chips)
    row = call.row_bytes
    if call.backward:  # also the output and its cotangent, the LSE and its own, three gradients
        row += (3 * call.heads + 2 * call.key_heads) * call.head_dim * HALF
        row += 2 * call.heads * SINGLE
    size = (chips - 1) / chips * call.tokens / chips * row
    coordinates = (chips - 1) / chips * call.tokens * call.coordinates
    return [Transfer("exchange", size, chips), Transfer("gather", coordinates, chips)]


def heads(call: Attention, chips: int) -> list[Transfer]:
    """Each chip has some heads of all tokens."""
    check_heads(call, chips)
    return []


def product(call: Attention, chips: int) -> list[Transfer]:
    """`ulysses` within groups of chips, of one key head each, and a `ring` across the groups."""
    near = call.key_heads
    far, rest = divmod(chips, near)
    if rest or far < 2:
        raise ValueError(f"a product of {near} and more needs more chips than {chips}")
    within = ulysses(call._replace(tokens=call.tokens // far), near)
    return within + ring(call._replace(key_heads=1), far)


def all_reduce(call: Attention, chips: int) -> list[Transfer]:
    """Decoding: one query is on all chips, `tokens` keys are split over them, outputs are merged.

    All chips take the maximum of one number per head, and the sum of an output and three numbers.
    """
    size = call.heads * (1 + call.head_dim + 3) * SINGLE
    return [Transfer("gather", 2 * (chips - 1) / chips * size, chips)]


def check_heads(call: Attention, chips: int) -> None:
    if call.heads % chips or call.key_heads % chips:
        raise ValueError(f"{call.key_heads} key heads do not divide among {chips} chips")


STRATEGIES: Mapping[str, Callable[[Attention, int], list[Transfer]]] = {
    "ring": ring,
    "all-gather": all_gather,
    "ulysses": ulysses,
    "ulysses x ring": product,
    "heads": heads,
}


def cache_memory(call: Attention, chips: int) -> float:
    """Bytes of the keys and values of one chip, of which decoding reads all for each token."""
    return call.tokens / chips * 2 * call.key_heads * call.head_dim * HALF


def memory(strategy: str, call: Attention, chips: int) -> float:
    """Bytes of the large arrays that are held at once.

    With 32 thousand tokens per chip this is within a fifth of what XLA allocates. With four
    thousand it is up to twice as much, as XLA then keeps arrays in vector memory (VMEM) instead.
    """
    own = call.tokens / chips
    arguments = own * call.row_bytes * (2 if call.backward else 1)
    if strategy == "ring":
        return arguments + ring_memory(call, chips)
    if strategy == "ulysses x ring":
        near = call.key_heads
        part = call._replace(heads=call.heads // near, key_heads=1)
        return 2 * arguments + ring_memory(part, chips // near)
    sums = 2 * own * call.heads * call.head_dim * SINGLE
    if strategy == "all-gather":
        keys = call.tokens * (call.key_bytes + call.key_gradient_bytes * call.backward)
        return arguments + sums + keys + own * call.tokens * BLOCK_MAP
    return arguments + (arguments if strategy == "ulysses" else sums) + call.tokens**2 * BLOCK_MAP


def ring_memory(call: Attention, chips: int) -> float:
    """Sums over blocks and the next terms, and what is on its way while a block is computed."""
    block = call.tokens / chips
    sums = 2 * call.heads * call.head_dim * SINGLE + 3 * call.key_gradient_bytes * call.backward
    return block * (sums + 2 * call.key_bytes) + block**2 * BLOCK_MAP


BLOCK_MAP = 36 / 128**2  # bytes per pair of tokens: some 36 for each block of 128 by 128 scores


class Chip(NamedTuple):
    """Published rates of a TPU.

    Attributes:
      matrix: FLOPs per second of matrix products in bfloat16.
      interconnect: Bytes per second that a chip sends and receives by all of its links together.
      dimensions: Axes of the torus. A chip has two links along each.
      memory: Bytes of memory.
      bandwidth: Bytes per second that a chip reads from its memory.
    """

    matrix: float
    interconnect: float
    dimensions: int
    memory: float
    bandwidth: float

    @property
    def link(self) -> float:
        """Bytes per second of one link in one direction."""
        return self.interconnect / (4 * self.dimensions)

    def seconds(self, transfer: Transfer) -> float:
        """The least time of a transfer, if links are all that limits it."""
        if transfer.kind == "neighbour":
            return transfer.size / self.link
        share = 1 / (2 * self.dimensions)  # of the bytes, that each link of a chip carries
        if transfer.kind == "exchange":
            # A byte makes side / 4 hops along each axis; two links of a chip share them.
            share = max(share, longest_side(transfer.chips, self.dimensions) / 8)
        return transfer.size * share / self.link


# https://docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e, /tpu7x: "Peak compute per chip (bf16)",
# "Bidirectional inter-chip interconnect (ICI) bandwidth (per chip)", "HBM capacity per chip", "HBM
# bandwidth per chip".
# JAX has two devices on each chip of 7x.
CHIPS = {
    "v5e": Chip(197e12, 400e9, 2, 16e9, 819e9),
    "v5p": Chip(459e12, 1200e9, 3, 95e9, 2765e9),
    "v6e": Chip(918e12, 800e9, 2, 32e9, 1638e9),
    "7x": Chip(2307e12, 1200e9, 3, 192e9, 7380e9),
}


def longest_side(chips: int, dimensions: int) -> int:
    """The longest side of the torus of so many chips that is most like a square or a cube."""
    if dimensions == 1:
        return chips
    sides = [side for side in range(1, chips + 1) if chips % side == 0]
    return min(max(side, longest_side(chips // side, dimensions - 1)) for side in sides)


class Times(NamedTuple):
    """Seconds of the matrix products and of the links of one layer, if they overlap."""

    matrices: float
    links: float

    @property
    def bound(self) -> str:
        """Which of the two takes longer."""
        return "links" if self.links > self.matrices else "matrices"


def times(transfers: list[Transfer], call: Attention, chips: int, chip: Chip) -> Times:
    """The times that the published rates imply. Work is divided evenly, as in zig-zag order."""
    links = math.fsum(chip.seconds(transfer) for transfer in transfers)
    return Times(call.flops / chips / chip.matrix, links)
