"""Programs compiled for TPUs that are not there, and what their text says about memory, traffic and speed."""
