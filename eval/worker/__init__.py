"""What a simulator process has on its module path: this directory, with the package `vpp_worker` and nothing else."""
