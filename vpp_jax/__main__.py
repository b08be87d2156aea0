"""`python -m vpp_jax VERB ...` is the same command as `vpp VERB ...`."""

from vpp_jax.cli.main import run

if __name__ == "__main__":
    run()
