"""The formulas of `examples/sharding_report.py`, and the reader of compiled programs."""

import pytest
import sharding_report
from sharding_collectives import collectives
from sharding_costs import (
    CHIPS,
    STRATEGIES,
    Attention,
    Transfer,
    all_reduce,
    cache_memory,
    longest_side,
    memory,
    times,
)

TEXT = """HloModule f

%fused (p: bf16[64,64]) -> bf16[64,64] {
  %p = bf16[64,64]{1,0} parameter(0)
  ROOT %product = bf16[64,64]{1,0} convolution(%p, %p), dim_labels=bf_io->bf
}

%body (b: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {
  %b = (s32[], bf16[64,64]{1,0}) parameter(0)
  %x = bf16[64,64]{1,0} get-tuple-element(%b), index=1
  %send = (bf16[64,64]{1,0}, bf16[64,64]{1,0}, u32[], u32[]) collective-permute-start(%x)
  %y = bf16[64,64]{1,0} fusion(%x), kind=kOutput, calls=%fused
  %got = bf16[64,64]{1,0} collective-permute-done(%send)
  %late = bf16[64,64]{1,0} collective-permute(%got)
  ROOT %next = (s32[], bf16[64,64]{1,0}) tuple(%i, %late)
}

%condition (c: (s32[], bf16[64,64])) -> pred[] {
  %limit = s32[] constant(9)
  %c = (s32[], bf16[64,64]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%count, %limit), direction=LT
}

ENTRY %main (a: bf16[64,64]) -> bf16[512,64] {
  %a = bf16[64,64]{1,0} parameter(0)
  %two = s32[] constant(2)
  %first = s32[] copy(%two)
  %start = (s32[], bf16[64,64]{1,0}) tuple(%first, %a)
  %loop = (s32[], bf16[64,64]{1,0}) while(%start), condition=%condition, body=%body
  %z = bf16[64,64]{1,0} get-tuple-element(%loop), index=1
  ROOT %all = bf16[512,64]{1,0} all-gather(%z), replica_groups={{0,1,2,3,4,5,6,7}}
}
"""


def test_collectives_count_as_often_as_their_loop_runs():
    size = 64 * 64 * 2
    sent, late, gathered = collectives(TEXT)
    assert sent == ("collective-permute", size, 1, 7, True)
    assert late == ("collective-permute", size, 1, 7, False)
    assert gathered == ("all-gather", 8 * size, 8, 1, False)
    assert [sent.sent, gathered.sent] == [7 * size, 7 * size]


def test_formulas_by_hand():
    call = Attention(tokens=1600, heads=8, key_heads=2, head_dim=10)
    assert call.flops == (2 + 5) * 2 * 10 * 8 * 1600 * 1600 / 2
    keys = 400 * (2 * 2 * 10 * 2 + 8)  # of one of four chips
    assert STRATEGIES["ring"](call._replace(backward=False), 4) == [
        Transfer("neighbour", 3 * keys, 4)
    ]
    (gathered,) = STRATEGIES["all-gather"](call._replace(backward=False), 4)
    assert gathered.size == 3 * keys
    rows, coordinates = STRATEGIES["ulysses"](call._replace(backward=False), 2)
    assert rows.size == 400 * 2 * (8 + 2) * 10 * 2  # half of what a chip has
    assert coordinates.size == 800 * 8
    assert STRATEGIES["heads"](call, 2) == []
    with pytest.raises(ValueError, match="2 key heads do not divide among 4 chips"):
        STRATEGIES["ulysses"](call, 4)


def test_decoding_reads_the_cache_and_sends_an_output_per_head():
    call = Attention(tokens=1600, heads=8, key_heads=2, head_dim=10)
    (merged,) = all_reduce(call, 4)
    assert merged.size == 2 * 3 / 4 * 8 * (1 + 10 + 3) * 4
    assert cache_memory(call, 4) == 400 * 2 * 2 * 10 * 2


def test_tori_are_as_square_as_they_can_be():
    sides = [longest_side(*x) for x in ((256, 2), (8, 2), (512, 3), (128, 3), (7, 2))]
    assert sides == [16, 4, 8, 8, 7]


def test_links_carry_what_the_interconnect_is_divided_into():
    v5e = CHIPS["v5e"]  # 400 GB/s over four links, each in two directions
    assert v5e.link == 50e9
    assert v5e.seconds(Transfer("neighbour", 50e9, 256)) == 1
    assert v5e.seconds(Transfer("gather", 50e9, 256)) == 1 / 4
    assert v5e.seconds(Transfer("exchange", 50e9, 256)) == 16 / 8


def test_a_longer_sequence_is_bound_by_matrix_products():
    bounds = []
    for tokens in (2**20, 2**23):
        call = Attention(tokens)
        bounds.append(times(STRATEGIES["ring"](call, 256), call, 256, CHIPS["v5e"]).bound)
    assert bounds == ["links", "matrices"]


def test_64_million_tokens_fit_into_16_gigabytes_of_256_chips():
    assert 8e9 < memory("ring", Attention(2**26), 256) < CHIPS["v5e"].memory


def test_the_report_has_a_line_per_strategy_chips_and_tokens(capsys):
    sharding_report.report(Attention(0), [8, 256], [2**20])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line]) == 1 + 2 * len(STRATEGIES)
    assert "15.5 GiB" in lines[1]
    assert "8 key heads do not divide among 256 chips" in "\n".join(lines)


def test_the_report_of_decoding_gives_the_time_to_read_the_cache(capsys):
    sharding_report.report_decoding(Attention(0), [8], [2**17, 2**26])
    short, long = capsys.readouterr().out.splitlines()[1:]
    assert short.split()[3:7] == ["7.22", "KiB", "64", "MiB"]
    assert "81.9 us memory" in short  # 2**26 bytes / 819 GB/s
    assert "too large" in long  # 32 GiB for v5e
