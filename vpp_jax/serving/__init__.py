"""Trained policies behind the interface that the evaluator's host loop and policy servers call."""
