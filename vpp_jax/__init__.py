"""Video Prediction Policy (arXiv 2412.14803) in JAX/Flax: a video diffusion model's features drive a diffusion policy."""

import os

__version__ = "0.1.0"

# Read when the libraries that open buckets are imported. etils imports TensorFlow for a path, if it is installed, unless this says no.
os.environ.setdefault("EPATH_USE_TF", "false")
# gcsfs would answer from listings made before TensorStore, or another process, wrote to the directory.
os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')
