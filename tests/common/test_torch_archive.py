"""A single tensor out of a PyTorch archive, without PyTorch; whole checkpoints are read in tests/interop/test_torch_file.py."""

import numpy as np
import pytest

from vpp_jax.common.errors import FileFormatError
from vpp_jax.common.torch_archive import read_tensor


def test_a_file_of_one_tensor(archive, tmp_path):
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    np.testing.assert_array_equal(read_tensor(archive.write(tmp_path / "a.pt", archive.tensor(values))), values)
    with pytest.raises(FileFormatError, match="'the content' is a dict, expected a dense tensor"):
        read_tensor(archive.write(tmp_path / "b.pt", {"x": archive.tensor(values)}))
