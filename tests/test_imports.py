"""The import rules of docs/architecture.md: one way only, and nothing heavy where it is not needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# room -> rooms that its modules may import from. `vpp_jax.predictor` stands for video_predictor.py and policy.py, `vpp_jax.core` for the
# other top-level modules of vpp_jax (errors, functional, config, provenance).
CORE = {"vpp_jax.core"}
NETWORKS = {"vpp_jax.models", "vpp_jax.diffusion"}
MAY_IMPORT = {
    "vpp_jax.core": NETWORKS | {"data_pipelines", "vpp_jax.parallel"},  # configurations stand beside what they configure; weights are
    # read through `parallel.gather`
    "vpp_jax.models": CORE | {"vpp_jax.parallel"},  # `rows.shard_map_over_batch` runs a kernel on every device
    "vpp_jax.diffusion": CORE,
    "vpp_jax.predictor": CORE | NETWORKS,
    "vpp_jax.parallel": CORE,
    "vpp_jax.training": CORE | NETWORKS | {"vpp_jax.predictor", "vpp_jax.parallel", "data_pipelines"},
    "vpp_jax.aot": CORE | NETWORKS | {"vpp_jax.predictor", "vpp_jax.parallel", "vpp_jax.training"},
    "vpp_jax.cli": {"*"},
    "vpp_jax.main": {"vpp_jax.cli"},
    "configs": CORE,
    "data_pipelines": CORE,
    "data_pipelines.builders": CORE | {"data_pipelines", "eval.envs", "eval.experts"},  # the simulator's builder drives the simulator
    "eval": CORE | {"vpp_jax.predictor", "eval.envs", "eval.policies"},
    "eval.envs": CORE,
    "eval.experts": {"eval.envs"},  # experts stand above the environments
    "eval.policies": CORE | {"eval"},  # the interface of whatever acts
    "vpp_jax.serving": CORE | NETWORKS | {"vpp_jax.predictor", "vpp_jax.parallel", "vpp_jax.training", "data_pipelines", "eval.policies"},
    "vpp_jax.interop": CORE | NETWORKS | {"vpp_jax.predictor", "vpp_jax.parallel", "vpp_jax.training", "data_pipelines"},
}
# Rooms that must not load JAX, whatever they import.
WITHOUT_JAX = ("eval.envs.registry", "eval.envs.base", "eval.worker.vpp_worker.protocol", "eval.worker_process")
HEAVY = ("tensorflow", "torch", "mujoco", "wandb")
LIGHT = (
    "vpp_jax",
    "vpp_jax.config",
    "vpp_jax.models.video_unet",
    "vpp_jax.diffusion.samplers",
    "vpp_jax.training.loop",
    "vpp_jax.cli.main",
    "vpp_jax.parallel.partition",
    "data_pipelines.loader",
    "data_pipelines.sources",
)


def room(module: str) -> str:
    """The room that a dotted module name lies in."""
    parts = module.split(".")
    if parts[0] == "vpp_jax":
        if len(parts) == 1:
            return "vpp_jax.core"
        if parts[1] in ("video_predictor", "policy"):
            return "vpp_jax.predictor"
        if parts[1] == "__main__":
            return "vpp_jax.main"
        return f"vpp_jax.{parts[1]}" if f"vpp_jax.{parts[1]}" in MAY_IMPORT else "vpp_jax.core"
    two = ".".join(parts[:2])
    return two if two in MAY_IMPORT else parts[0]


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def module_files(project: Path) -> list[tuple[str, Path]]:
    files = [path for top in ("vpp_jax", "data_pipelines", "eval", "configs") for path in sorted((project / top).rglob("*.py"))]
    return [(".".join(path.relative_to(project).with_suffix("").parts).removesuffix(".__init__"), path) for path in files]


def test_imports_run_one_way(project):
    wrong = []
    for module, path in module_files(project):
        here = room(module)
        for name in imports(path):
            if name.split(".")[0] not in ("vpp_jax", "data_pipelines", "eval", "configs"):
                continue
            there = room(name)
            if there != here and there not in MAY_IMPORT[here] and "*" not in MAY_IMPORT[here]:
                wrong.append(f"{module} ({here}) imports {name} ({there})")
    assert not wrong, "\n".join(wrong)


def test_networks_know_no_files_and_no_data(project):
    """models and diffusion: arrays in, arrays out. The tokenizer is the one exception: it reads the vocabulary inside the package."""
    forbidden = {"pathlib", "os", "io", "json", "grain", "orbax", "fsspec", "PIL", "data_pipelines", "eval", "mujoco", "tensorflow"}
    for module, path in module_files(Path(project)):
        if room(module) in ("vpp_jax.models", "vpp_jax.diffusion") and not module.endswith("tokenizer"):
            used = {name.split(".")[0] for name in imports(path)}
            assert not used & forbidden, f"{module} imports {used & forbidden}"


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after `statement` in a fresh interpreter."""
    code = f"{statement}; import sys; print(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{statement}: {done.stderr[-2000:]}"
    return set(done.stdout.split())


def test_core_needs_nothing_heavy():
    """One interpreter for all of them: what none loads, the first does not load either."""
    found = loaded_by("import " + ", ".join(LIGHT)) & set(HEAVY)
    assert not found, f"importing {', '.join(LIGHT)} loads {', '.join(found)}"


def test_simulator_processes_never_load_jax():
    found = loaded_by("import " + ", ".join(WITHOUT_JAX)) & {"jax", "jaxlib", "flax", "torch", "tensorflow"}
    assert not found, f"importing {', '.join(WITHOUT_JAX)} loads {', '.join(found)}"


def test_package_and_command_start_without_jax():
    """`vpp --help` answers at once."""
    found = loaded_by("import vpp_jax, vpp_jax.cli.main; vpp_jax.cli.main.main(['--version'])") & {"jax", "numpy", "absl"}
    assert not found


@pytest.mark.parametrize("top", ["vpp_jax", "data_pipelines", "eval", "configs"])
def test_no_module_changes_the_environment_when_imported(project, top):
    """Only functions may set environment variables: `os.environ[...] = ` at module level is work at import."""
    for path in sorted((project / top).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            assert not any("environ" in ast.unparse(target) for target in targets), f"{path}:{node.lineno}"
