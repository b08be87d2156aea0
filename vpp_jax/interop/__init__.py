"""Published PyTorch checkpoints: their names and layouts."""
