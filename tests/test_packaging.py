"""What the metadata promises: every import is declared, every declaration is imported, pins fit the ranges, locks hold the pins."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from vpp_jax.cli.main import EXTRAS as EXTRA_OF_MODULE

PACKAGES = ("vpp_jax", "data_pipelines", "eval", "configs")
# What simulator processes import: eval/worker/vpp_worker under a name of its own, and packages of simulators of others (eval/simulators.py)
WORKER = ("vpp_worker", "hydra", "omegaconf")
PYTHONS = ("3.11", "3.12", "3.13")
# Top-level modules whose distribution has another name
DISTRIBUTIONS = {
    "PIL": "pillow",
    "tensorflow": "tensorflow-cpu",
    "google": "protobuf",
    "orbax": "orbax-checkpoint",
    "absl": "absl-py",
    "OpenGL": "PyOpenGL",
}
# Extras of the metadata -> the file that pins them
EXTRAS = {"dev": "dev.txt", "tpu": "tpu.txt", "cuda": "cuda.txt", "gcs": "gcs.txt", "beam": "beam.txt", "parity": "parity.txt"}
# Pinned for what is imported, not imported by us
UNIMPORTED = {
    "importlib-resources": "tensorflow-datasets imports it without asking for it",
    "tensorflow-cpu": "TFDS writes TFRecord with it",
    "libtpu": "JAX finds it",
    "gcsfs": "fsspec and etils open gs:// with it",
    "pytest-xdist": "-n 2",
    "ruff": "make lint",
    "basedpyright": "make types",
    "uv": "make lock",
    "setuptools": "builds the wheel",
}


@pytest.fixture(scope="module")
def metadata(project) -> dict:
    return tomllib.loads((project / "pyproject.toml").read_text())["project"]


def name_of(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


def names(requirements: list[str]) -> set[str]:
    return {name_of(Requirement(text)) for text in requirements}


def pins(path: Path, python: str | None = None) -> dict[str, Version]:
    """The exact versions in a requirements file; with `python`, as its markers choose them there. Files it includes are left out."""
    found = {}
    for line in path.read_text().splitlines():
        line = re.sub(r"\s*(#.*)?$", "", line)
        if not line or line.startswith("-"):
            continue
        requirement = Requirement(line)
        if python is not None and requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        exact = re.fullmatch(r"==([^*]+)", str(requirement.specifier))
        if exact is None:
            assert requirement.extras, f"{path.name}: {line} is not pinned"  # jax[cuda12]: jax itself is pinned
            continue
        assert python is None or name_of(requirement) not in found, f"{path.name}: {requirement.name} is pinned twice"
        found[name_of(requirement)] = Version(exact.group(1))
    return found


def imported(folder: Path) -> set[str]:
    """Distributions (canonical names) that the files of a folder import, those of the standard library and our own left out."""
    modules = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(str(node.module).split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and isinstance(node.args[0], ast.Constant):
                modules.add(node.args[0].value.split(".")[0])
    return {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in modules - {*sys.stdlib_module_names, *PACKAGES, *WORKER}}


def test_every_import_is_declared_and_every_declaration_imported(project, metadata):
    """In the packages that a wheel holds. What only tests import is the extra `dev`'s business."""
    extras = metadata["optional-dependencies"]
    runtime = {name for extra, requirements in extras.items() if extra not in ("dev", "parity") for name in names(requirements)}
    declared = names(metadata["dependencies"]) | runtime
    found = set().union(*(imported(project / package) for package in PACKAGES))
    assert not found - declared, f"imported, but not in pyproject.toml: {sorted(found - declared)}"
    unused = declared - found - UNIMPORTED.keys()
    assert not unused, f"in pyproject.toml, but imported nowhere: {sorted(unused)}"


def test_the_core_is_imported_without_the_simulators(project, metadata):
    """An installation without the extra `sim` can train, predict and convert: only environments and what runs them import its packages."""
    simulators = names(metadata["optional-dependencies"]["sim"])
    for path in [path for package in ("vpp_jax", "data_pipelines", "configs") for path in (project / package).rglob("*.py")]:
        for node in ast.parse(path.read_text()).body:  # imports at the head of a file; those inside functions are made when needed
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                top = module.split(".")[0]
                assert canonicalize_name(DISTRIBUTIONS.get(top, top)) not in simulators, f"{path}:{node.lineno} imports {module}"


def test_the_command_line_knows_the_extras(metadata):
    """`vpp` names the extra of a package that is missing."""
    for module, extra in EXTRA_OF_MODULE.items():
        assert canonicalize_name(DISTRIBUTIONS.get(module, module)) in names(metadata["optional-dependencies"][extra])


def test_tools_of_the_checkout_are_declared(project, metadata):
    """tests, tools and benchmarks use what the package, `dev` or the environment of `make parity` or `make beam` brings."""
    declared = names(metadata["dependencies"]) | {name for group in metadata["optional-dependencies"].values() for name in names(group)}
    folders = ("tests", "tools", "benchmarks")
    ours = {canonicalize_name(path.stem) for folder in folders for path in (project / folder).rglob("*") if path.suffix in ("", ".py")}
    found = set().union(*(imported(project / folder) for folder in folders)) - ours - set(folders)
    transitive = {"packaging", "pytest", "huggingface-hub", "tensorstore"}  # come with pytest, tokenizers and Orbax
    assert not found - declared - transitive, sorted(found - declared - transitive)


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_fit_the_ranges(python, project, metadata):
    ranges = {None: [*metadata["dependencies"], *metadata["optional-dependencies"]["sim"]]}
    ranges |= {file: metadata["optional-dependencies"][extra] for extra, file in EXTRAS.items()}
    for file, requirements in ranges.items():
        path = project / "requirements" / file if file else project / "requirements.txt"
        pinned = pins(path, python)
        for requirement in map(Requirement, requirements):
            if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
                continue
            if requirement.extras and name_of(requirement) not in pinned:
                assert str(requirement) in path.read_text()
                continue
            assert name_of(requirement) in pinned, f"{path.name} does not pin {requirement.name} on Python {python}"
            assert pinned[name_of(requirement)] in requirement.specifier, f"{path.name}: {requirement} on Python {python}"
        if file in (None, "dev.txt", "tpu.txt", "parity.txt"):
            extra = pinned.keys() - names(requirements) - {"pytest"}
            assert not extra, f"{path.name} pins what pyproject.toml does not ask for: {sorted(extra)}"


@pytest.mark.parametrize("python", PYTHONS)
def test_locks_hold_the_pins(python, project):
    """`make lock` was run after the last change of a pin."""
    lock = pins(project / "requirements" / f"lock-{python}.txt")
    for path in (project / "requirements.txt", project / "requirements" / "dev.txt"):
        for name, version in pins(path, python).items():
            assert lock.get(name) == version, f"lock-{python}.txt has {name} {lock.get(name)}, {path.name} {version}: make lock"


def test_every_pin_has_a_word_on_why(project):
    """A reader must be able to tell what a dependency is for. NumPy, Matplotlib and pytest need no introduction; a second line of the same
    package neither."""
    seen = {"numpy", "matplotlib", "pytest"}
    for path in [project / "requirements.txt", *(project / "requirements" / file for file in EXTRAS.values())]:
        for line in path.read_text().splitlines():
            if line and line[0] not in "#-":
                name = name_of(Requirement(line.split("#")[0].strip()))
                assert "#" in line or name in seen, f"{path.name}: {line}"
                seen.add(name)


def test_version_and_pythons_are_said_once(project, metadata):
    import vpp_jax

    assert metadata["version"] == vpp_jax.__version__
    locks = {path.stem.removeprefix("lock-") for path in (project / "requirements").glob("lock-*.txt")}
    classified = {text.rsplit(" ", 1)[1] for text in metadata["classifiers"] if re.search(r"Python :: 3\.\d", text)}
    assert locks == classified == set(PYTHONS)


def test_citation_and_hooks_follow(project, metadata):
    citation = (project / "CITATION.cff").read_text()
    assert f"\nversion: {metadata['version']}\n" in citation
    assert f"\nlicense: {metadata['license']}\n" in citation
    ruff = pins(project / "requirements" / "dev.txt")["ruff"]
    assert f"ruff-pre-commit\n    rev: v{ruff}\n" in (project / ".pre-commit-config.yaml").read_text()


def test_workflows_run_targets_that_exist(project):
    targets = set(re.findall(r"^([a-z-]+):", (project / "Makefile").read_text(), re.M))
    for path in [project / ".ci" / "run", *(project / ".github" / "workflows").glob("*.yml")]:
        text = path.read_text()
        asked = set(re.findall(r"\bmake ([a-z-]+)", text))
        for names_of_matrix in re.findall(r"target: \[(.+)\]", text):
            asked |= set(names_of_matrix.split(", "))
        assert asked, path
        assert asked <= targets, f"{path.name}: {sorted(asked - targets)}"
