"""What CALVIN is in any simulator: scenes, the privileged state, tasks and their predicates. Needs NumPy and jaxtyping only."""
