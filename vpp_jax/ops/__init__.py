"""One function per operation, with the kernels of CPU, GPU and TPU behind it."""
