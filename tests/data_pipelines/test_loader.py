"""The data order depends on (seed, step) only, not on the number of processes and threads; it resumes at any step."""

import itertools
import json

import numpy as np
import pytest

from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.errors import BadRecordError, DataError
from data_pipelines.loader import clip_source, eval_batches, make_iterator, mixture_index
from data_pipelines.sources import Mixture


class Numbers:
    """A source whose example is its own number."""

    def __init__(self, length: int, start: int = 0, bad: int | None = None):
        self.length, self.start, self.bad, self.skipped = length, start, bad, {}

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == self.bad:
            raise BadRecordError("file record 3", "action", "NaN")
        return {"number": np.array(self.start + index), "row": np.full(2, index, np.float32)}

    def metadata(self):
        return {}


def batches(count, *arguments, **options):
    return [batch["number"].tolist() for batch in itertools.islice(make_iterator(*arguments, **options), count)]


MIXED = Mixture([Numbers(40), Numbers(9, start=100), Numbers(25, start=1000)], [2, 1, 1])


@pytest.mark.parametrize("source", [Numbers(37), MIXED], ids=["single", "mixture"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_global_batches_do_not_depend_on_processes_or_threads(source, shuffle):
    whole = batches(30, source, 8, seed=5, threads=0, shuffle=shuffle)
    for processes, threads in itertools.product((1, 2, 4), (0, 3)):
        parts = [batches(30, source, 8, 5, rows.tolist(), threads, shuffle) for rows in np.split(np.arange(8), processes)]
        joined = [list(itertools.chain(*rows)) for rows in zip(*parts, strict=True)]
        assert joined == whole
    order = mixture_index(source, 5, shuffle)(np.arange(30 * 8))
    assert list(itertools.chain(*whole)) == [int(source[int(number)]["number"]) for number in order]


def test_seeds_give_different_orders():
    assert batches(4, Numbers(50), 10, seed=0) != batches(4, Numbers(50), 10, seed=1)
    assert batches(4, Numbers(50), 10, seed=0) == batches(4, Numbers(50), 10, seed=0)


def test_mixture_follows_its_weights_and_visits_everything():
    drawn = np.concatenate(batches(100, MIXED, 10, seed=2))
    shares = [np.mean(drawn < 40), np.mean((drawn >= 100) & (drawn < 109)), np.mean(drawn >= 1000)]
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.01)
    assert len(np.unique(drawn)) == len(MIXED)
    assert [int(MIXED[index]["number"]) for index in (0, 39, 40, 48, 49, 73)] == [0, 39, 100, 108, 1000, 1024]


@pytest.mark.parametrize("stop", [0, 1, 7, 19])
@pytest.mark.parametrize("threads", [0, 2])
def test_resume_is_exact_at_any_step(stop, threads):
    whole = batches(25, MIXED, 6, seed=3, threads=threads)
    iterator = make_iterator(MIXED, 6, 3, threads=threads)
    head = [next(iterator)["number"].tolist() for _ in range(stop)]
    state = iterator.get_state()
    assert len(json.dumps(state)) < 1000
    for _ in range(3):
        next(iterator)  # what was read after the checkpoint is read again
    other = make_iterator(MIXED, 6, 3, threads=threads)
    other.set_state(state)
    assert head + [next(other)["number"].tolist() for _ in range(25 - stop)] == whole


def test_another_number_of_processes_resumes_the_same_order():
    """8 processes, then 4, then 1, changing at steps 5 and 9; the same state in each of them."""
    whole = batches(14, MIXED, 16, seed=7, threads=0)
    joined, state = [], None
    for processes, steps in ((8, 5), (4, 4), (1, 5)):
        held = np.split(np.arange(16), processes)
        iterators = [make_iterator(MIXED, 16, 7, rows.tolist(), threads=2) for rows in held]
        for iterator in iterators:
            if state is not None:
                iterator.set_state(state)
        for _ in range(steps):
            parts = [next(iterator)["number"] for iterator in iterators]
            assert all(len(part) == 16 // processes for part in parts)
            joined.append(np.concatenate(parts).tolist())
        (state,) = {json.dumps(iterator.get_state()) for iterator in iterators}
        state = json.loads(state)
    assert joined == whole


def test_a_process_may_hold_any_rows():
    """On a torus the rows of a host are not consecutive."""
    whole, part = make_iterator(MIXED, 16, 7), make_iterator(MIXED, 16, 7, [0, 1, 6, 15])
    for _ in range(3):
        assert next(part)["number"].tolist() == next(whole)["number"][[0, 1, 6, 15]].tolist()


def test_another_batch_size_resumes_the_same_order():
    whole = batches(10, MIXED, 12, seed=7, threads=0)
    first, second = make_iterator(MIXED, 12, 7), make_iterator(MIXED, 6, 7)
    head = [next(first)["number"].tolist() for _ in range(3)]
    second.set_state(first.get_state())
    tail = [next(second)["number"].tolist() for _ in range(14)]
    assert list(itertools.chain(*head, *tail)) == list(itertools.chain(*whole))


def test_a_state_of_another_kind_is_refused():
    for state in ({"next_index": 12}, {"examples": -1}, 7):
        with pytest.raises(DataError, match=r"expected \{'examples': N\}"):
            make_iterator(MIXED, 6, 3).set_state(state)


@pytest.mark.medium
def test_worker_processes_give_the_same_batches(built, tokenizer):
    source = clip_source(DataConfig(datasets=(DatasetConfig(str(built)),), clip_frames=3), 16, tokenizer, 6)
    expected, made = make_iterator(source, 4, 0, threads=0), make_iterator(source, 4, 0, workers=2)
    for iterator in (expected, made):
        iterator.set_state({"examples": 8})
    for _ in range(3):
        left, right = next(expected), next(made)
        assert left.keys() == right.keys()
        for name, value in left.items():
            np.testing.assert_array_equal(right[name], value)
    assert made.get_state() == {"examples": 20}


def test_real_batches_resume_bit_for_bit(built, tokenizer):
    source = clip_source(DataConfig(datasets=(DatasetConfig(str(built)),), clip_frames=3), 16, tokenizer, 6)
    iterator = make_iterator(source, 4, 0)
    first = [next(iterator) for _ in range(5)]
    other = make_iterator(source, 4, 0)
    for _ in range(2):
        next(other)
    third = make_iterator(source, 4, 0, threads=0)
    third.set_state(other.get_state())
    for expected in first[2:]:
        for name, value in next(third).items():
            np.testing.assert_array_equal(value, expected[name])
            assert value.dtype == expected[name].dtype


def test_eval_batches_pass_once_and_mask_the_rest():
    for processes in (1, 2, 4):
        seen, counts = [], []
        for process in range(processes):
            made = list(eval_batches(Numbers(21), 8, np.arange(8)[process::processes].tolist()))
            counts.append(len(made))
            for batch in made:
                assert batch["number"].shape == (8 // processes,)
                seen += batch["number"][batch["valid"]].tolist()
        assert sorted(seen) == list(range(21))
        assert counts == [3] * processes
    limited = list(eval_batches(Numbers(100), 4, limit=5))
    numbers = np.concatenate([batch["number"][batch["valid"]] for batch in limited])
    assert numbers.tolist() == [0, 24, 49, 74, 99]


def test_a_bad_record_reaches_the_caller():
    iterator = make_iterator(Numbers(6, bad=4), 6, 0, threads=2)
    for _ in range(2):  # the second attempt fails, too: nothing is silently skipped
        with pytest.raises(BadRecordError, match="file record 3, field 'action': NaN"):
            next(iterator)
    assert iterator.get_state() == {"examples": 0}


def test_rows_are_rows_of_the_batch():
    for rows in ([], [4, 6], [-1]):
        with pytest.raises(DataError, match="are not rows of a batch of 6"):
            make_iterator(Numbers(9), 6, 0, rows)
