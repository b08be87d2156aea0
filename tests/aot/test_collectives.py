"""Collectives read from a program's text: kinds, groups, loops, and bytes that leave a chip."""

from dataclasses import replace

import pytest

from vpp_jax.aot.chips import parse_topology
from vpp_jax.aot.collectives import Collective, collectives
from vpp_jax.aot.roofline import bounds, foreign_gathers

# As the compiler writes a sum over four slices of two chips each.
BETWEEN_SLICES = (
    '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.1_0",'
    '_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1:3,4}x{0:1}",_xla_megascale_transfer_type="ALL_REDUCE"'
)
TEXT = """HloModule step, is_scheduled=true

%body (p: (s32[], bf16[16,64])) -> (s32[], bf16[16,64]) {
  %p = (s32[]{:T(128)}, bf16[16,64]{1,0}) parameter(0)
  %x = bf16[16,64]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %permuted = bf16[16,64]{1,0} collective-permute(%x), channel_id=7, source_target_pairs={{0,1},{1,0}}
  ROOT %out = (s32[], bf16[16,64]{1,0}) tuple(%i, %permuted)
}

%all-reduce-scatter.3 (input: bf16[64,128]) -> bf16[16,128] {
  %input = bf16[64,128]{1,0} parameter(0)
  %sum = bf16[64,128]{1,0} all-reduce(%input), channel_id=5, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add
  ROOT %own = bf16[16,128]{1,0} dynamic-slice(%sum, %start, %zero), dynamic_slice_sizes={16,128}
}

%scattered.1 (q: f32[320,64]) -> f32[80,64] {
  %q = f32[320,64]{1,0} parameter(0)
  ROOT %rs = f32[80,64]{1,0} reduce-scatter(%q), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
}

ENTRY %main (a: bf16[80,320]) -> bf16[320,320] {
  %a = bf16[80,320]{1,0} parameter(0), sharding={devices=[4,1]0,1,2,3}
  %g = bf16[320,320]{1,0:T(8,128)(2,1)} all-gather(%a), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %started = (bf16[80,320]{1,0}, bf16[320,320]{1,0}) all-gather-start(%a), channel_id=2, replica_groups=[2,4]<=[8], dimensions={0}
  %done = bf16[320,320]{1,0} all-gather-done(%started)
  %tokens = bf16[640,1024]{1,0} all-gather(%b), channel_id=9, replica_groups={}, dimensions={0}, metadata={op_name="jit(step)/attend"}
  %grads = (f32[64]{0}, f32[8]{0}) all-reduce(%c, %d), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %c = f32[64]{0} parameter(1)
  %shards = f32[80,64]{1,0} fusion(%e), kind=kCustom, calls=%scattered.1
  %own = bf16[16,128]{1,0} fusion(%f), kind=kCustom, calls=%all-reduce-scatter.3
  %w = (s32[], bf16[16,64]{1,0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %v = (s32[], bf16[16,64]{1,0}) while(%t), condition=%cond, body=%body
  %after-all = token[] after-all()
  %send = (f32[64]{0}, u32[], token[]) send(%c, %after-all), channel_id=11, is_host_transfer=true, frontend_attributes={NETWORK_ATTRIBUTES}
  %recv = (f32[64]{0}, u32[], token[]) recv(%after-all), channel_id=12, is_host_transfer=true, frontend_attributes={NETWORK_ATTRIBUTES}
}
""".replace("NETWORK_ATTRIBUTES", BETWEEN_SLICES)


@pytest.fixture(scope="module")
def found():
    return collectives(TEXT, devices=8)


def test_kinds_and_groups(found):
    assert [(entry.kind, entry.group, entry.times) for entry in found] == [
        ("all-gather", 4, 1),
        ("all-gather", 4, 1),
        ("all-gather", 8, 1),
        ("all-reduce", 8, 1),
        ("reduce-scatter", 4, 1),
        ("reduce-scatter", 4, 1),
        ("collective-permute", 2, 3),
        ("collective-permute", 2, 1),
        ("all-reduce", 4, 1),
    ]
    assert [entry.counted for entry in found] == [True] * 7 + [False, True]
    assert [entry.network for entry in found] == [False] * 8 + [True]


def test_bytes(found):
    gather, started, _, _, scatter, fused, permute, _, summed = found
    assert fused.sent == 64 * 128 * 2 * 3 / 4
    assert gather.size == started.size == 320 * 320 * 2
    assert gather.sent == gather.size * 3 / 4
    assert scatter.size == 320 * 64 * 4
    assert scatter.sent == scatter.size * 3 / 4
    assert permute.sent == 3 * 16 * 64 * 2
    assert summed.sent == 64 * 4 * 2 * 3 / 4


def test_time_between_slices():
    """v5e: 3.125 GB/s out of a chip into the data centre; what stays inside a slice takes none of it."""
    entry = Collective("all-reduce", (("f32", (1_000_000,)),), 2, 1, "", True)
    topology = parse_topology("2xv5e-16")
    inside, between = (bounds(topology, 0.0, 0.0, [replace(entry, network=network)]) for network in (False, True))
    assert inside["network"] == between["interconnect"] == 0.0
    assert between["network"] == pytest.approx(4e6 / 3.125e9)


def test_only_parameters_may_be_gathered(found):
    assert foreign_gathers(found, frozenset({(320, 320)})) == ["bf16[640, 1024] jit(step)/attend"]
