"""The index arithmetic against simple loops and against statistics of random permutations."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from data_pipelines.errors import DataError
from data_pipelines.mixture_index import MAX_EXAMPLES, DatasetRange, MixtureIndex, interleave, permute


def keys(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1 << 63, size=count, dtype=np.uint64)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 64, 1000, 65537])
def test_permute_is_a_permutation(length):
    for key in keys(3):
        assert np.array_equal(np.sort(permute(np.arange(length), length, key)), np.arange(length))


def test_permutations_are_equally_frequent():
    """All 24 of four things, chosen by 12,000 keys: chi-square with 23 degrees of freedom."""
    drawn = keys(12_000)
    columns = [permute(np.full(len(drawn), index), 4, drawn) for index in range(4)]
    counts = Counter(zip(*(column.tolist() for column in columns), strict=True))
    assert set(counts) == set(itertools.permutations(range(4)))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_neighbours_are_separated():
    """Distances between consecutive results are distributed as for random numbers, at a large length."""
    length = 10_000_019
    found = permute(np.arange(5000), length, keys(1)[0])
    distances = np.abs(np.diff(found)) / length
    assert stats.kstest(distances[::2], lambda x: 1 - (1 - x) ** 2).pvalue > 1e-3  # of two uniform numbers
    assert stats.kstest(found / length, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("weights", [(1,), (1, 1), (2, 1, 1), (0.3, 0.15, 0.15, 0.08, 0.32), (1e-3, 1, 1e-3)])
def test_datasets_follow_the_weights_in_every_prefix(weights):
    turns, within = interleave(np.arange(3000), weights)
    seen = [0] * len(weights)
    for place, (turn, position) in enumerate(zip(turns.tolist(), within.tolist(), strict=True), start=1):
        assert position == seen[turn]  # each dataset counts its own positions without a gap
        seen[turn] += 1
        for member, weight in enumerate(weights):
            assert abs(seen[member] - place * weight / sum(weights)) < len(weights)


def test_far_positions_agree_with_their_neighbours():
    positions = MAX_EXAMPLES - 1 - np.arange(50)[::-1]
    turns, within = interleave(positions, (2, 1, 1))
    for member in range(3):
        mine = within[turns == member]
        assert np.array_equal(mine, mine[0] + np.arange(len(mine)))


def test_every_epoch_is_another_permutation():
    order = MixtureIndex([DatasetRange(5, 23)], seed=0)
    epochs = order(np.arange(23 * 4)).reshape(4, 23)
    assert (np.sort(epochs, 1) == 5 + np.arange(23)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_is_a_function_of_the_position():
    order = MixtureIndex([DatasetRange(0, 40, 2.0), DatasetRange(40, 9), DatasetRange(49, 25)], seed=3)
    whole = order(np.arange(500))
    shuffled = np.random.default_rng(0).permutation(500)
    assert np.array_equal(order(shuffled), whole[shuffled])
    assert [int(order(np.array([place]))[0]) for place in range(60)] == whole[:60].tolist()
    assert not np.array_equal(
        MixtureIndex([DatasetRange(0, 40, 2.0), DatasetRange(40, 9), DatasetRange(49, 25)], seed=4)(np.arange(500)), whole
    )


def test_order_without_shuffling():
    assert MixtureIndex([DatasetRange(0, 5)], 0, shuffle=False)(np.arange(12)).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_empty_datasets_are_refused():
    for member in (DatasetRange(0, 0), DatasetRange(0, 3, 0.0)):
        with pytest.raises(DataError, match="every dataset of a mixture needs examples and a positive weight"):
            MixtureIndex([member], 0)
