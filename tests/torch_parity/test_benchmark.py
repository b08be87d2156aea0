"""Both sides of `benchmarks/against_pytorch.py` agree: `act()` from images and an instruction to actions, and a training loss."""

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: `make parity` compares with it")
pytest.importorskip("diffusers", reason="diffusers is not installed: `make parity` compares with it")

from against_pytorch import largest_difference
from pytorch import jax_side, torch_side


@pytest.mark.parametrize("case", ["act", "train_policy"])
def test_both_sides_compute_the_same(case):
    """act: text encoders, VAE, U-Net with taps, Video Former and ten denoising steps at once, with the same weights and noise."""
    ours = jax_side.CASES[case]("tiny")
    theirs = torch_side.CASES[case]("tiny", ours.shared)
    assert largest_difference(ours.outputs, theirs.outputs) < 1e-4
