"""One file per experiment; each file's docstring gives command, hardware, duration and the number to expect."""
