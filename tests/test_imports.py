"""The import rules of docs/architecture.md: one way only, and nothing heavy where it is not needed."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
TOPS = ("vpp_jax", "data_pipelines", "eval", "configs")
# Folder -> folders of this project that its modules may import from, beside its own: the rules that a new arrow must not soften.
ONLY_IMPORTS = {
    "vpp_jax.common": set(),
    "vpp_jax.ops": {"vpp_jax.common", "vpp_jax.parallel"},
    "vpp_jax.models": {"vpp_jax.common", "vpp_jax.ops"},
    "vpp_jax.diffusion": {"vpp_jax.common"},
    "vpp_jax.parallel": {"vpp_jax.common"},
    "data_pipelines.rlds": {"vpp_jax.common", *(f"data_pipelines.{name}" for name in ("cache", "errors", "instructions", "storage"))},
    "eval.envs": {"vpp_jax.common", "eval.errors"},
    "eval.calvin": set(),  # what both simulators share, importable where neither is installed
    "eval.envs.calvin_mujoco": {"vpp_jax.common", "eval.calvin", "eval.envs", "eval.errors"},
    "eval.experts.calvin": {"eval.calvin"},  # no simulator: they act in the original one, too
    "eval.worker.vpp_worker": set(),  # runs in interpreters that have NumPy and msgpack only
    "eval.worker.vpp_simulators": set(),  # and those of a simulator of others
}
# Modules that must not load JAX, whatever they import.
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
Graph = dict[str, set[str]]


@cache
def module_files() -> dict[str, Path]:
    """Dotted name -> file; a package is its `__init__.py`."""
    files = (path for top in TOPS for path in sorted((PROJECT / top).rglob("*.py")))
    return {".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def names_imported(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@cache
def file_graph() -> Graph:
    """Module -> modules of this project that it imports."""
    files = module_files()

    def module_of(name: str) -> str:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    return {module: {module_of(name) for name in names_imported(path)} - {"", module} for module, path in files.items()}


def node_of(module: str) -> str:
    """A subpackage is a node; so is every file directly in `vpp_jax`, `data_pipelines` and `eval`."""
    parent = module.rpartition(".")[0]
    is_package = module_files()[module].name == "__init__.py"
    return module if is_package or parent in ("vpp_jax", "data_pipelines", "eval") else parent


@cache
def folder_graph() -> Graph:
    graph: Graph = {}
    for module, imported in file_graph().items():
        graph.setdefault(node_of(module), set()).update(map(node_of, imported))
    return {node: imported - {node} for node, imported in graph.items()}


def drawn_floors() -> list[list[str]]:
    """The drawing of docs/architecture.md: one floor per line, the top one first."""
    page = (PROJECT / "docs" / "architecture.md").read_text()
    drawing = re.search(r"<!-- floors -->\n```\n(.*?)```", page, re.S)
    assert drawing, "docs/architecture.md has no drawing of the imports"
    return [line.split() for line in drawing.group(1).splitlines()]


def true_floors(graph: Graph) -> list[list[str]]:
    """Each node directly above the highest node that it imports."""
    height: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        height[node] = 1 + max((height[imported] for imported in graph[node]), default=-1)
    return [sorted(node for node in height if height[node] == floor) for floor in range(max(height.values()), -1, -1)]


@pytest.mark.parametrize("graph", [file_graph, folder_graph])
def test_imports_have_no_circle(graph):
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"modules that import each other: {' <- '.join(error.args[1])}")


def test_a_circle_would_be_found():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()


def test_imports_match_the_drawing():
    """docs/architecture.md has every node once, and an import only ever goes to a lower line."""
    graph, drawn = folder_graph(), drawn_floors()
    line = {node: number for number, floor in enumerate(drawn) for node in floor}
    expected = "\n".join(" ".join(floor) for floor in true_floors(graph))
    assert sorted(node for floor in drawn for node in floor) == sorted(graph), f"the drawing should be\n{expected}"
    wrong = [f"{node} imports {other}" for node, imported in graph.items() for other in imported if line[other] <= line[node]]
    assert not wrong, "\n".join([*wrong, "the drawing should be", expected])


@pytest.mark.parametrize("folder", ONLY_IMPORTS)
def test_ground_floors_import_only_what_they_may(folder):
    more = folder_graph()[folder] - ONLY_IMPORTS[folder] - {folder.rpartition(".")[0]}
    assert not more, f"{folder} imports {', '.join(sorted(more))}"


def test_data_pipelines_import_nothing_of_vpp_jax_but_the_ground_floor():
    for node, imported in folder_graph().items():
        if node.startswith("data_pipelines"):
            more = {other for other in imported if other.startswith("vpp_jax.") and other != "vpp_jax.common"}
            assert not more, f"{node} imports {', '.join(sorted(more))}"


def test_networks_know_no_files_and_no_data():
    """ops, models and diffusion: arrays in, arrays out. The tokenizer is the one that reads, a vocabulary inside the package."""
    forbidden = {"pathlib", "os", "io", "json", "grain", "orbax", "fsspec", "PIL", "data_pipelines", "eval", "mujoco", "tensorflow"}
    for module, path in module_files().items():
        if node_of(module) in ("vpp_jax.ops", "vpp_jax.models", "vpp_jax.diffusion") and not module.endswith("tokenizer"):
            used = {name.split(".")[0] for name in names_imported(path)}
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


@pytest.mark.parametrize("top", TOPS)
def test_no_module_changes_the_environment_when_imported(top):
    """Only functions may set environment variables: `os.environ[...] = ` at module level is work at import."""
    for path in sorted((PROJECT / top).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            assert not any("environ" in ast.unparse(target) for target in targets), f"{path}:{node.lineno}"
