"""Adapters to simulators of others, for their own interpreters: NumPy and the simulator, nothing of vpp_jax."""
