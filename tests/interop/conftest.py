"""What the published weight files hold."""

import csv
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def published_shapes(reference_data) -> Callable[[str], dict[str, tuple[int, ...]]]:
    """Module (`unet`, `vae`, ...) -> shape of every tensor of the published file, from its list of keys."""

    def shapes(module: str) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        with open(reference_data / "published" / f"keys_{module}.tsv", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                if row["key"] in found:  # further down some lists repeat what differs in other variants
                    break
                found[row["key"]] = () if row["shape"] == "scalar" else tuple(map(int, row["shape"].split("x")))
        return found

    return shapes
