"""How every experiment's parameters are split on 1, 4 and 8 devices, held against files: a change of the rules or the models shows here.

`python tests/parallel/test_golden.py` writes the files anew; the difference is then for a person to read.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = (
    *(pytest.param(f"svd_calvin_{stage}", marks=pytest.mark.medium) for stage in ("video", "policy")),
    "tiny_calvin_vae",
    "tiny_calvin_video",
    "tiny_calvin_policy",
    "tiny_bridge_vae",
    "tiny_bridge_video",
)
MESHES = {"1": {"data": 1, "fsdp": 1, "tensor": 1}, "4": {"data": 1, "fsdp": 4, "tensor": 1}, "8": {"data": 1, "fsdp": 4, "tensor": 2}}


def decisions(name: str) -> dict[str, dict[str, dict[str, int]]]:
    """Devices -> name of a parameter, numbers of blocks left out -> how it is split -> how many such parameters there are."""
    from vpp_jax.cli.config_flag import load_config
    from vpp_jax.parallel.partition import decide
    from vpp_jax.training.stages.registry import make_stage

    config = load_config(f"configs/{name}.py")
    stage = make_stage(config)
    params = stage.abstract_trainable() | stage.abstract_frozen()
    found: dict[str, dict[str, Counter]] = {}
    for devices, sizes in MESHES.items():
        groups = found.setdefault(devices, {})
        for parameter, decision in decide(params, sizes, config.mesh.min_size_to_shard).items():
            split = ",".join(str(axis or "-") for axis in decision.spec) or "replicated"
            note = f" ({decision.note})" if decision.note else ""
            groups.setdefault(re.sub(r"\.\d+\.", ".N.", parameter), Counter())[split + note] += 1
    return {devices: {key: dict(sorted(value.items())) for key, value in sorted(groups.items())} for devices, groups in found.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_split_as_recorded(name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    found = decisions(name)
    for devices, expected in golden.items():
        assert found[devices] == expected, f"{name} on {devices} devices; `python {Path(__file__).name}` writes what is now"


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for entry in CONFIGS:
        name = entry if isinstance(entry, str) else entry.values[0]
        (GOLDEN / f"{name}.json").write_text(json.dumps(decisions(name), indent=1) + "\n")


if __name__ == "__main__":
    main()
