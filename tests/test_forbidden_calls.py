"""No part of the program loads pickles, evaluates text or starts a shell; the few places that run what a person names are listed."""

import ast

import pytest

FOLDERS = ("vpp_jax", "data_pipelines", "eval", "configs", "tools", "benchmarks")
# (file, what it does) -> why it may. Nothing that is read from a data set, a checkpoint or a network reaches any of them.
EXCEPTIONS = {
    ("vpp_jax/cli/config_flag.py", "exec_module"): "--config=FILE.py: a configuration file is a program, chosen on the command line",
    ("vpp_jax/cli/main.py", "import_module"): "verbs, from a table",
    ("eval/worker/vpp_worker/process.py", "import_module"): "--environment module:Class of the person's own simulator",
    ("eval/worker/vpp_worker/process.py", "exec_module"): "--package: the evaluator's own package, without what lies beside it",
    ("eval/experts/registry.py", "import_module"): "scripted experts, from a table",
    ("eval/envs/registry.py", "import_module"): "simulators, from a table",
    (
        "eval/benchmarks/registry.py",
        "import_module",
    ): "benchmarks, from a table or an entry point, or module:attribute of the person",
    ("eval/envs/calvin_mujoco/rendering.py", "import_module"): "the graphics library, of two",
    ("benchmarks/loading/measure.py", "import_module"): "pipelines to compare, from a table",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
FUNCTIONS = {"os.system", "os.popen", "torch.load", "shutil.unpack_archive", "subprocess.getoutput", "subprocess.getstatusoutput"}
METHODS = {"extractall", "extract", "exec_module", "import_module", "run_path", "run_module"}  # whatever they are called on
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml", "runpy", "code"}


def findings(tree: ast.AST) -> set[str]:
    """What of the above a file does."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names if alias.name.split(".")[0] in MODULES}
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                found.add(module)
            case ast.ImportFrom(module=str(module), names=names):
                found |= {name.name for name in names if f"{module}.{name.name}" in FUNCTIONS or name.name in METHODS}
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                found.add(name)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if f"{owner}.{name}" in FUNCTIONS:
                found.add(f"{owner}.{name}")
            case ast.Attribute(attr=name) if name in METHODS:
                found.add(name)
        for keyword in node.keywords if isinstance(node, ast.Call) else ():
            if keyword.arg in ("allow_pickle", "shell") and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
                found.add(keyword.arg)
    return found


def test_the_program_runs_nothing_that_it_reads(project):
    found = {}
    for folder in FOLDERS:
        for path in sorted((project / folder).rglob("*.py")):
            name = path.relative_to(project).as_posix()
            found |= {(name, what): "" for what in findings(ast.parse(path.read_text()))}
    assert found.keys() == EXCEPTIONS.keys()


@pytest.mark.parametrize(
    "text",
    [
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as p",
        "torch.load(path)",
        "from torch import load",
        "import yaml",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "archive.extractall(folder)",
        "importlib.import_module(name)",
        "from importlib import import_module",
        "shutil.unpack_archive(path)",
    ],
)
def test_what_is_found(text):
    assert findings(ast.parse(text))


def test_what_is_not(project):
    harmless = "np.load(path)\nnp.load(path, allow_pickle=False)\njson.loads(text)\nmodel.eval()\nre.compile(text)\nsubprocess.run([a])"
    assert not findings(ast.parse(harmless))
    assert all((project / name).is_file() for name, _ in EXCEPTIONS)
