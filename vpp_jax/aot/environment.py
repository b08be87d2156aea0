"""What the TPU compiler wants to find in the environment of a host without TPUs, and whether it is installed."""

import importlib.util

from vpp_jax.common.errors import VppError

# libtpu otherwise asks a metadata server for the slice it is on, refuses to be loaded twice on one host, and writes warnings about both.
VARIABLES = {
    "JAX_PLATFORMS": "cpu",  # arrays live here; the compiler is reached through `jax.experimental.topologies`
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class MissingCompilerError(VppError):
    """libtpu is not installed."""


def require_compiler() -> None:
    if importlib.util.find_spec("libtpu") is None:
        raise MissingCompilerError(
            "compiling for TPUs needs the package libtpu (134 MB; no TPU is needed), which is not installed: "
            "pip install -e '.[tpu]', into an environment of its own where JAX on CPU is to start without its warnings"
        )
