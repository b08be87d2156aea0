"""Video Prediction Policy (arXiv 2412.14803) in JAX/Flax: a video diffusion model's features drive a diffusion policy."""

__version__ = "0.1.0"
