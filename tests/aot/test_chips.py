"""Names of slices, and the bandwidth of a group of chips in a torus."""

import pytest

from vpp_jax.aot.chips import TopologyError, parse_topology


@pytest.mark.parametrize(
    ("name", "compiler_name", "chips"),
    [
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v5e:8x16", "v5e:8x16", 128),
        ("v6e-16", "v6e:4x4", 16),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v4-8", "v4:2x2x1", 4),
        ("2xv5e-256", "v5e:16x16", 512),
        ("4xv5p:2x2x1", "v5p:2x2x1", 16),
    ],
)
def test_names(name, compiler_name, chips):
    topology = parse_topology(name)
    assert (topology.compiler_name, topology.chips) == (compiler_name, chips)


@pytest.mark.parametrize("name", ["v5e", "v7-8", "v5e-17", "v5p-4", "v5e:4x4x4", "H100", "0xv5e-256"])
def test_other_names_are_refused(name):
    with pytest.raises(TopologyError, match=f"topology '{name}'"):
        parse_topology(name)


def test_bandwidth_of_a_group():
    """v5e: 200 GB/s out of a chip over two axes; only an axis of 16 is a ring."""
    pod, small = parse_topology("v5e-256"), parse_topology("v5e-16")
    assert pod.group_bandwidth(16) == 100
    assert pod.group_bandwidth(256) == 200
    assert small.group_bandwidth(4) == 50
    assert small.group_bandwidth(16) == 100
    assert parse_topology("v5p-8").group_bandwidth(4) == 200
