"""Window arithmetic against simple loops."""

import itertools

import numpy as np
import pytest

from data_pipelines.rlds import windows


def test_whole_clip_is_the_truncated_linspace():
    for length, frames in itertools.product(range(1, 40), (2, 8, 16)):
        expected = [int((length - 1) * k / (frames - 1) + 1e-9) for k in range(frames)]
        assert windows.whole_clip(length, frames).tolist() == expected


def test_strided_clip_never_leaves_the_episode():
    for length, start, frames, stride in itertools.product(range(1, 12), range(4), (2, 5), (1, 3)):
        if start >= length:
            continue
        expected = []
        step = start
        for _ in range(frames):
            expected.append(min(step, length - 1))
            step += stride
        assert windows.strided_clip(length, start, frames, stride).tolist() == expected


def test_action_chunk_masks_what_does_not_exist():
    for length, chunk in itertools.product(range(1, 9), (1, 4, 10)):
        for start in range(length):
            steps, mask = windows.action_chunk(length, start, chunk)
            for k in range(chunk):
                exists = start + k < length
                assert mask[k] == exists
                assert steps[k] == (start + k if exists else length - 1)


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_window_counts(every, first):
    lengths = np.arange(0, 30)
    expected = [len(range(first, length, every)) for length in lengths]
    assert windows.window_counts(lengths, every, first).tolist() == expected


def test_window_table_numbers_every_window_once():
    counts = [3, 0, 1, 0, 0, 5, 2]
    table = windows.WindowTable(np.array(counts))
    expected = [(episode, window) for episode, count in enumerate(counts) for window in range(count)]
    assert [table[index] for index in range(len(table))] == expected
    with pytest.raises(IndexError):
        table[len(expected)]


def test_window_table_may_be_empty():
    assert len(windows.WindowTable(np.zeros(0, np.int64))) == 0
