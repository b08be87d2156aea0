"""The recorded vectors of the published modules, all of them, through the command that anyone can run; and that it can say no."""

import numpy as np
import pytest

from tests import parity


@pytest.mark.slow
def test_every_recorded_quantity_is_recomputed(shared_data, capsys):
    code = parity.main([str(shared_data / "parity"), "--seed", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0, "\n".join(line for line in lines if "FAIL" in line)
    inputs = set(parity.INPUTS)
    with np.load(shared_data / "parity" / "vectors.npz") as archive:
        assert {line.split()[0] for line in lines} == set(archive.files) - inputs


def test_other_weights_fail(shared_data, capsys):
    folder = parity.Folder(shared_data / "parity", seed=1)
    assert not parity.compare(folder, (parity.schedules, parity.former))
    out = capsys.readouterr().out
    assert "vf_out" in out
    assert "FAIL" in out
    assert "unet_out" in out  # what was not recomputed is named, too
