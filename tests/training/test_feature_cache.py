"""The cache of predictive features: complete, resumable, rebuilt when what it depends on changes."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.training.feature_cache import FILE_NAME, CachedFeatures, build_feature_cache


class Observations:
    """Seven observations; the 'image' of observation i is the number i."""

    skipped: ClassVar = {}

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return {"image": np.array(index, np.float32), "action": np.full((2, 3), index, np.float32)}

    def metadata(self):
        return {"dataset": "numbers"}


class Interrupted(Exception):
    pass


def compute(batch, keys):
    """Features [b t=2 n=3 d=1] that show image and key."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (2, 3, 1)))(keys)
    return jnp.asarray(batch["image"])[:, None, None, None] + 0.01 * noise


def build(directory, function=compute, identity="one", draws=2):
    return build_feature_cache(Observations(), function, directory, draws=draws, batch_size=3, seed=5, identity=identity)


def test_every_observation_has_its_draws(tmp_path):
    features = build(tmp_path)
    assert features.shape == (14, 2, 3, 1)
    assert features.dtype == np.float16
    np.testing.assert_allclose(np.asarray(features).mean((1, 2, 3)), np.tile(np.arange(7), 2), atol=0.05)
    assert (features[:7] != features[7:]).any()
    source = CachedFeatures(Observations(), features)
    assert len(source) == 14
    np.testing.assert_array_equal(source[9]["action"], np.full((2, 3), 2))
    np.testing.assert_array_equal(source[9]["features"], features[9])
    assert source[9]["observation"] == 2
    assert source.metadata() == {"dataset": "numbers"}


def test_an_interrupted_build_resumes_and_ends_equal(tmp_path, monkeypatch):
    monkeypatch.setattr("vpp_jax.training.feature_cache.FLUSH_EVERY", 1)
    whole = np.array(build(tmp_path / "whole"))
    calls = []

    def failing(batch, keys):
        if len(calls) == 3:
            raise Interrupted
        calls.append(len(keys))
        return compute(batch, keys)

    with pytest.raises(Interrupted):
        build(tmp_path / "broken", failing)
    later = []

    def counting(batch, keys):
        later.append(len(keys))
        return compute(batch, keys)

    np.testing.assert_array_equal(build(tmp_path / "broken", counting), whole)
    assert set(calls + later) == {3}, "one batch shape, so one compilation"
    assert len(later) == 2


def test_a_finished_cache_is_only_opened(tmp_path):
    build(tmp_path)

    def never(batch, keys):
        raise AssertionError("computed again")

    build(tmp_path, never)


def test_another_identity_starts_over(tmp_path):
    build(tmp_path)
    doubled = build(tmp_path, lambda batch, keys: 2 * compute(batch, keys), identity="two")
    np.testing.assert_allclose(np.asarray(doubled)[:7].mean((1, 2, 3)), 2 * np.arange(7), atol=0.1)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".npy"] == [FILE_NAME]
