"""The simulator's side of the evaluator: self-contained, needs only NumPy, msgpack and Python 3.8 or newer."""
