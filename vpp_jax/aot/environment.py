"""Environment variables for the TPU compiler on a host without TPUs, and a check that it is installed."""

import importlib.util

from vpp_jax.common.errors import VppError

# Otherwise libtpu queries a metadata server for its slice, refuses to be loaded twice on one host, and logs warnings about both.
VARIABLES = {
    "JAX_PLATFORMS": "cpu",  # for arrays; the compiler is used through `jax.experimental.topologies`
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
            "pip install -e '.[tpu]', into a separate environment if JAX on CPU should start without its warnings"
        )
