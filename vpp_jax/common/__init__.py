"""Shared by all packages: errors, atomic writes, provenance, foreign archives read as data. Imports nothing else of this project."""
