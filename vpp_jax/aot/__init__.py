"""Ahead-of-time compilation for TPU topologies without the hardware: memory fit, communication, roofline."""
