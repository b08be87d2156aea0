"""All recorded vectors of the published modules through the parity command, which also fails when it should."""

import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tools import parity


@pytest.mark.slow
def test_every_recorded_quantity_is_recomputed(reference_data, project):
    """As anyone runs it: in a process of its own, where the compiler optimises as it does by default."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tests.parity", str(reference_data / "parity"), "--seed", "0"]
    run = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stderr + "\n".join(line for line in lines if "FAIL" in line)
    inputs = set(parity.INPUTS)
    with np.load(reference_data / "parity" / "vectors.npz") as archive:
        assert {line.split()[0] for line in lines} == set(archive.files) - inputs


def test_other_weights_fail(reference_data, capsys):
    folder = parity.Folder(reference_data / "parity", seed=1)
    assert not parity.compare(folder, (parity.schedules, parity.former))
    out = capsys.readouterr().out
    assert "vf_out" in out
    assert "FAIL" in out
    assert "unet_out" in out  # what was not recomputed is named, too


@pytest.mark.slow
def test_an_error_that_float64_confirms_is_not_excused_as_rounding(reference_data, tmp_path, capsys, monkeypatch):
    """An array misses its tolerance by little: here because the record is wrong in one number."""
    monkeypatch.setattr(parity, "DRAWS", 2)
    for name in ("config.json", "keys.json"):
        shutil.copy(reference_data / "parity" / name, tmp_path)
    with np.load(reference_data / "parity" / "vectors.npz") as archive:
        vectors = dict(archive)
    vectors["vf_out"].flat[7] += 3 * parity.FORWARD * np.abs(vectors["vf_out"]).max()
    np.savez(tmp_path / "vectors.npz", **vectors)
    parity.compare(parity.Folder(tmp_path, seed=0), (parity.former,))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "FAIL (limit 2e-05; from float64: record 6.0e-05, float32 up to" in lines["vf_out"]
    assert lines["vf2d_out"].endswith("  ok")


@pytest.mark.slow
def test_a_mistake_in_float32_alone_is_not_excused_as_rounding(reference_data, capsys, monkeypatch):
    """Some code runs in float32 only (Winograd's convolutions): float64 agrees with the record then, and float32 is off in every draw."""

    def faulty(self, features):
        tokens = right(self, features)
        return tokens + (3 * parity.FORWARD * jnp.abs(tokens).max() if tokens.dtype == jnp.float32 else 0)

    right = parity.VideoFormer.__call__
    monkeypatch.setattr(parity.VideoFormer, "__call__", faulty)
    monkeypatch.setattr(parity, "DRAWS", 2)
    parity.compare(parity.Folder(reference_data / "parity", seed=0), (parity.former,))
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in ("vf_out", "vf2d_out"):
        assert "FAIL (limit 2e-05; from float64:" in lines[name]
        assert lines[name].endswith(("on average 6.0e-05)", "on average 6.1e-05)"))
