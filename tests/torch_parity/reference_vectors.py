"""Vectors recorded from the published modules, and the weights they were recorded with, for the PyTorch twins in `benchmarks/pytorch`."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from tools.parity import Folder


def vectors(folder: Path) -> dict[str, torch.Tensor]:
    with np.load(folder / "vectors.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def weights(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Module -> state dict, rebuilt from the seed."""
    return Folder(folder, seed=0).weights


def with_weights(module: nn.Module, state: dict[str, np.ndarray]) -> nn.Module:
    """`module` with a published state dict, in evaluation mode. Published tensors that no forward pass reads may be left over."""
    missing, left_over = module.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
    assert not missing
    assert {name.removeprefix("inner_model.").split(".")[0] for name in left_over} <= {"pos_emb", "goal_emb", "proprio_emb"}
    return module.eval()
