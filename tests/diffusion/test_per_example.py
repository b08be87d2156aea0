"""A row's random numbers do not depend on the batch around it."""

import jax
import numpy as np

from vpp_jax.diffusion.per_example import example_keys, normal_per_example, split_example_keys


def test_rows_draw_the_same_alone_and_together():
    key = jax.random.key(5)
    together = normal_per_example(example_keys(key, 6), (3, 2))
    for row in range(6):
        np.testing.assert_array_equal(together[row], jax.random.normal(jax.random.fold_in(key, row), (3, 2)))
    part = normal_per_example(example_keys(key, 6)[2:4], (3, 2))
    np.testing.assert_array_equal(part, together[2:4])
    assert np.unique(np.asarray(together)).size == 36


def test_keys_of_rows_pass_through_and_streams_differ():
    keys = example_keys(jax.random.key(0), 4)
    assert example_keys(keys, 4) is keys
    first, second = split_example_keys(keys, 2)
    assert first.shape == second.shape == (4,)
    np.testing.assert_array_equal(jax.random.key_data(first[2]), jax.random.key_data(jax.random.split(keys[2], 2)[0]))
    assert (np.asarray(normal_per_example(first, ())) != np.asarray(normal_per_example(second, ()))).all()
