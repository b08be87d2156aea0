"""Private modules of libraries are used where there is no public form, in one function each, and nowhere else."""

import ast
from collections import Counter

FOLDERS = ("vpp_jax", "data_pipelines", "eval", "configs", "tools", "benchmarks")
OURS = {"vpp_jax", "data_pipelines", "eval", "configs", "tools", "benchmarks", "tests"}
ALLOWED = {
    "vpp_jax/training/distributed.py: _on_tpu: jax._src.cloud_tpu_init": "whether TPU chips are on the bus",
    "vpp_jax/training/distributed.py: _key_value_store: jax._src.distributed": "the key-value store of jax.distributed",
}


def is_private(module: str) -> bool:
    top, *rest = module.split(".")
    return top not in OURS and any(part.startswith("_") and not part.startswith("__") for part in rest)


def private_names(tree: ast.AST, function: str = "") -> list[str]:
    """'function: module' of each import of a private module, and of each attribute `_src`."""
    found = []
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef) else function
        if isinstance(node, ast.Import):
            found += [f"{inside}: {alias.name}" for alias in node.names if is_private(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module] if is_private(node.module) else [f"{node.module}.{alias.name}" for alias in node.names]
            found += [f"{inside}: {module}" for module in modules if is_private(module)]
        elif isinstance(node, ast.Attribute) and node.attr == "_src":
            found.append(f"{inside}: {ast.unparse(node)}")
        found += private_names(node, inside)
    return found


def test_private_modules_are_used_in_one_function_each(project):
    found = Counter()
    for folder in FOLDERS:
        for path in (project / folder).rglob("*.py"):
            found.update(f"{path.relative_to(project).as_posix()}: {name}" for name in private_names(ast.parse(path.read_text())))
    assert found == Counter(ALLOWED.keys())


def test_what_is_found():
    text = "import jax._src.core\nfrom orbax.checkpoint._src.path import step\nfrom jax import _src\ndef f():\n    return jax._src.core\n"
    assert private_names(ast.parse(text)) == [
        ": jax._src.core",
        ": orbax.checkpoint._src.path",
        ": jax._src",
        "f: jax._src",
    ]
    assert not private_names(
        ast.parse("from jax.experimental import multihost_utils\nfrom eval.report import _x\nimport numpy as np\nself._src2")
    )
