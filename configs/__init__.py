"""One file per experiment; each file's docstring says command, hardware, duration and the number to expect."""
