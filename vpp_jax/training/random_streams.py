"""The random streams of a run. The root key is split before anything is folded in, so that no stream is a training step of another one."""

from typing import NamedTuple

import jax


class RandomStreams(NamedTuple):
    """PRNG keys. init: fresh parameters. steps: folded with the number of updates made. evaluation: folded with the number of the batch."""

    init: jax.Array
    steps: jax.Array
    evaluation: jax.Array


def random_streams(seed: int) -> RandomStreams:
    return RandomStreams(*jax.random.split(jax.random.key(seed), len(RandomStreams._fields)))
