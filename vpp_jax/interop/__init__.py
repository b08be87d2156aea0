"""Import and export of published PyTorch checkpoints."""
