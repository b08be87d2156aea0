"""The cache of predictive features: complete, resumable, rebuilt when what it depends on changes."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loader import mixture_index
from data_pipelines.sources import Mixture
from vpp_jax.training import feature_cache
from vpp_jax.training.feature_cache import CachedFeatures, FeatureCacheError, build_feature_cache

PROCESS = Path(__file__).with_name("feature_cache_process.py")


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
    return np.asarray(jnp.asarray(batch["image"])[:, None, None, None] + 0.01 * noise)


def build(directory, function=compute, identity="one", draws=2, **more):
    options = {"shape": (2, 3, 1), "draws": draws, "batch_size": 3, "seed": 5, "identity": identity, "limit_gb": 1.0} | more
    return build_feature_cache(Observations(), function, directory, **options)


def contents(features):
    return np.stack([features[row] for row in range(len(features))])


def test_every_observation_has_its_draws(tmp_path):
    features = build(tmp_path)
    stored = contents(features)
    assert stored.shape == (14, 2, 3, 1)
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored.mean((1, 2, 3)), np.tile(np.arange(7), 2), atol=0.05)
    assert (stored[:7] != stored[7:]).any()
    source = CachedFeatures(Observations(), features)
    assert len(source) == 14
    np.testing.assert_array_equal(source[9]["action"], np.full((2, 3), 2))
    np.testing.assert_array_equal(source[9]["features"], features[9])
    assert source[9]["observation"] == 2
    assert source.metadata() == {"dataset": "numbers"}


def test_the_weights_of_a_mixture_hold_for_its_features(tmp_path):
    mixture = Mixture([Observations(), Observations()], [0.9, 0.1])
    options = {"shape": (2, 3, 1), "batch_size": 3, "seed": 5, "identity": "one", "limit_gb": 1.0}
    numbers = {}
    for draws in (1, 2):
        files = build_feature_cache(mixture, compute, tmp_path / str(draws), draws=draws, **options)
        numbers[draws] = mixture_index(CachedFeatures(mixture, files), 3)(np.arange(2800))
        assert np.mean(numbers[draws] % 14 < 7) == pytest.approx(0.9, abs=0.002)
    assert np.mean(numbers[2] < 14) == pytest.approx(0.5, abs=0.002)
    np.testing.assert_array_equal(numbers[1], mixture_index(mixture, 3)(np.arange(2800)))
    assert set(numbers[2].tolist()) == set(range(28))


def test_an_interrupted_build_resumes_and_ends_equal(tmp_path):
    whole = contents(build(tmp_path / "whole"))
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

    np.testing.assert_array_equal(contents(build(tmp_path / "broken", counting)), whole)
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
    np.testing.assert_allclose(contents(doubled)[:7].mean((1, 2, 3)), 2 * np.arange(7), atol=0.1)
    assert len(list(tmp_path.glob("*.npy"))) == 5


def test_the_size_is_printed_and_limited_before_anything_is_computed(tmp_path, capsys):
    build(tmp_path / "small", draws=2)
    assert "7 observations x 2 draw(s) x 1.2e-05 MB = 1.68e-07 GB" in capsys.readouterr().out

    def never(batch, keys):
        raise AssertionError("computed")

    published = {"shape": (16, 512, 2560), "draws": 1}  # 41.9 MB each
    with pytest.raises(FeatureCacheError, match=r"41\.9 MB = 0\.2936 GB, more than policy_diffusion\.feature_cache_gb = 0\.2"):
        build(tmp_path / "large", never, limit_gb=0.2, **published)
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize("parts", [(0, 1, 2), (0, 0, 1, 1)])
def test_processes_take_turns_and_write_what_one_would(tmp_path, monkeypatch, parts):
    """One after the other here; of two processes with the same rows only the first writes."""
    whole, split = tmp_path / "whole", tmp_path / "split"
    build(whole)
    build(split)
    for number in (0, 1, 2, 4):  # a killed run left the other one
        (split / f"{number:06d}.npy").unlink()
    begun, written, calls = [], [], []

    def gathered(name, value, timeout_s):
        if name.endswith("begins"):
            begun.append(value)
            return [begun[0]] * len(parts)
        return [str(part) for part in parts] if name.endswith("parts") else [value] * len(parts)

    def counted(batch, keys):
        calls.append(len(keys))
        return compute(batch, keys)

    monkeypatch.setattr(feature_cache, "all_gather_string", gathered)
    for process, part in enumerate(parts):
        before = {path.name for path in split.glob("*.npy")}
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        build(split, counted, part=(part, len(set(parts))))
        written.append({path.name for path in split.glob("*.npy")} - before)
    assert sum(map(len, written)) == 4, "no file twice"
    assert calls == [3] * len(parts) * 2, "equally many calls in every process"
    for path in whole.glob("*.npy"):
        assert (split / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_two_processes_on_one_mesh_write_what_one_writes(tmp_path, project):
    """The real program on 2 x 2 devices, kernels sharded over both processes, against one process with 2 devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"

    def start(directory, process, count):
        two_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
        environment = os.environ | two_devices | {"PYTHONPATH": str(project)}
        command = [sys.executable, str(PROCESS), str(tmp_path / directory), coordinator, str(process), str(count)]
        return subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    for directory, count in (("one", 1), ("two", 2)):
        running = [start(directory, process, count) for process in range(count)]
        output = "\n".join(process.communicate(timeout=300)[0] for process in running)
        assert [process.returncode for process in running] == [0] * count, output
    files = sorted((tmp_path / "one").glob("*.npy"))
    assert len(files) == 3
    for path in files:
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()
