"""What each way to split a long sequence sends, stores and computes, and what bounds its speed.

    python examples/sharding_report.py
    python examples/sharding_report.py --chips 256 --tokens 1048576 --key-heads 1

It takes a second, on any machine, and prints a line per strategy, number of chips and number of
tokens: the bytes that a chip sends, its memory, its FLOPs, and for each TPU the time of one layer
of causal attention, forward and backward, by its published rates. The time is that of the links or
of the matrix products, whichever is longer: if they overlap, this bounds the speed. For example,
with a million tokens on 256 chips of v5e a ring waits for its links (344 ms). With all-to-all
exchanges in groups of eight and a ring across the groups, matrix products take longer (156 ms).

A last table is that of decoding: one new token, and a cache that is split over the chips. They send
8 KiB, and a token takes as long as a chip needs to read its part of the cache: 656 us for a million
tokens on 8 chips of v5e.

    python examples/sharding_report.py --compile

compiles the strategies for slices of v5e, without a TPU, and compares the formulas with the
programs: the bytes agree to 1 %. It takes a minute and a half on 2 cores, and needs `pip install
libtpu tqdm` and this library.
"""

import argparse
import itertools
import math
from collections.abc import Sequence

from sharding_costs import CHIPS, STRATEGIES, Attention, all_reduce, cache_memory, memory, times

NUMBERS_OF_CHIPS = (8, 64, 256)
NUMBERS_OF_TOKENS = (2**17, 2**20, 2**23, 2**26)
COMPILED = ((8, 2**15), (256, 2**20))  # chips and tokens of `--compile`


def report(call: Attention, numbers_of_chips: list[int], numbers_of_tokens: list[int]) -> None:
    columns = f"{'strategy':15}{'chips':>6}{'tokens':>7}{'sent':>11}{'memory':>11}{'PFLOP':>9}"
    print(columns + "".join(f"{chip:>18}" for chip in CHIPS))
    for tokens, chips in itertools.product(numbers_of_tokens, numbers_of_chips):
        for strategy in STRATEGIES:
            print(line(strategy, call._replace(tokens=tokens), chips))
        print()


def line(strategy: str, call: Attention, chips: int) -> str:
    begin = f"{strategy:15}{chips:6}{tokens_text(call.tokens):>7}"
    try:
        transfers = STRATEGIES[strategy](call, chips)
    except ValueError as error:
        return f"{begin}    {error}"
    sent = sum(transfer.size for transfer in transfers)
    held = memory(strategy, call, chips)
    cells = [f"{bytes_text(sent):>11}{bytes_text(held):>11}{call.flops / chips / 1e15:9.3g}"]
    for chip in CHIPS.values():
        taken = times(transfers, call, chips, chip)
        fits = held <= chip.memory
        cells.append(f"{seconds_text(max(taken))} {taken.bound}" if fits else "too large")
    return begin + cells[0] + "".join(f"{cell:>18}" for cell in cells[1:])


def report_decoding(
    call: Attention, numbers_of_chips: list[int], numbers_of_tokens: list[int]
) -> None:
    """Print the same for one new token, whose keys are split over the chips: `AllReduce`.

    The time is that of reading the cache once. The rates of links add less than a microsecond, and
    their latencies, which are not published, some more.
    """
    print(f"{'decoding':15}{'chips':>6}{'cache':>7}{'sent':>11}{'memory':>11}{'':9}", end="")
    print("".join(f"{chip:>18}" for chip in CHIPS))
    for tokens, chips in itertools.product(numbers_of_tokens, numbers_of_chips):
        this = call._replace(tokens=tokens)
        sent = sum(transfer.size for transfer in all_reduce(this, chips))
        held = cache_memory(this, chips)
        cells = (
            f"{seconds_text(held / chip.bandwidth)} memory" if held <= chip.memory else "too large"
            for chip in CHIPS.values()
        )
        begin = f"{'all-reduce':15}{chips:6}{tokens_text(tokens):>7}{bytes_text(sent):>11}"
        print(f"{begin}{bytes_text(held):>11}{'':9}" + "".join(f"{cell:>18}" for cell in cells))


def compare(call: Attention, sizes: Sequence[tuple[int, int]]) -> None:
    """Print what compiled programs send and store, beside the formulas."""
    from sharding_collectives import collectives
    from sharding_programs import compile_attention, compile_decoding, memory_of, mesh_of, slice_of
    from tqdm import tqdm

    print(f"{'strategy':15}{'chips':>6}{'tokens':>7}{'sent, formula':>16}{'compiled':>11}", end="")
    print(f"{'memory, formula':>18}{'compiled':>11}{'overlapped':>12}")
    cases = list(itertools.product(sizes, [*STRATEGIES, "all-reduce"]))
    for (chips, tokens), strategy in tqdm(cases, leave=False):
        this = call._replace(tokens=tokens)
        is_decoding = strategy == "all-reduce"
        try:
            transfers = (all_reduce if is_decoding else STRATEGIES[strategy])(this, chips)
        except ValueError:
            continue
        mesh = mesh_of(slice_of(chips), strategy, this)
        if is_decoding:
            program, held = compile_decoding(mesh, this), cache_memory(this, chips)
        else:
            program = compile_attention(mesh, strategy, this)
            held = memory(strategy, this, chips)
        expected = math.fsum(transfer.size for transfer in transfers)
        found = collectives(program.as_text())
        sent = math.fsum(x.sent for x in found)
        hidden = math.fsum(x.sent for x in found if x.is_overlapped)
        tqdm.write(
            f"{strategy:15}{chips:6}{tokens_text(tokens):>7}{bytes_text(expected):>16}"
            f"{bytes_text(sent):>11}{bytes_text(held):>18}"
            f"{bytes_text(memory_of(program)):>11}{hidden / sent if sent else 1:12.1%}"
        )
        assert abs(sent - expected) <= 0.01 * expected


def tokens_text(tokens: int) -> str:
    return f"{tokens >> 20}M" if tokens >= 2**20 else f"{tokens >> 10}k"


def bytes_text(size: float) -> str:
    units = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20}
    unit = next((unit for unit in units if size >= 1000 * units[unit] / 1024), "KiB")
    return f"{size / units.get(unit, 1024):.3g} {unit}"


def seconds_text(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:.0f} s"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chips", type=int, nargs="+", default=NUMBERS_OF_CHIPS)
    parser.add_argument("--tokens", type=int, nargs="+", default=NUMBERS_OF_TOKENS)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--key-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--forward", action="store_true", help="without the gradient")
    parser.add_argument("--compile", action="store_true", help="compare with compiled programs")
    arguments = parser.parse_args()
    call = Attention(
        0, arguments.heads, arguments.key_heads, arguments.head_dim, not arguments.forward
    )
    if arguments.compile:
        compare(call, COMPILED)
    else:
        report(call, arguments.chips, arguments.tokens)
        report_decoding(call, arguments.chips, arguments.tokens)


if __name__ == "__main__":
    main()
