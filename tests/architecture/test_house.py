"""The rules of the house that neither ruff nor mypy nor import-linter can see."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "medseg").rglob("*.py"))
SHIPPED = LIBRARY + sorted((ROOT / "pipelines").rglob("*.py"))
PYTHON = SHIPPED + [path for folder in ("tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
FOLDERS = ("medseg", "pipelines", "configs", "tests", "benchmarks", "docs", "requirements", ".ci")
FILES = [path for path in ROOT.iterdir() if path.is_file()] + [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
]
TEXTS = [
    path
    for path in FILES
    if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt"} or path.name in {"Makefile", "run"}
]
SETUP = [ROOT / name for name in ("Makefile", "pyproject.toml", "requirements/constraints.txt", ".ci/run")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

MAX_BODY_LINES, MAX_PARAMETERS, MAX_FILE_LINES = 40, 7, 400
MAX_FILE_BYTES = 4 * 2**20
NAMELESS = {"util", "utils", "helper", "helpers", "common", "misc", "base"}
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
"""Modules that run code found in the files they read."""


def where(path: Path, node: ast.AST | None = None) -> str:
    line = f":{node.lineno}" if isinstance(node, ast.stmt | ast.expr) else ""
    return f"{path.relative_to(ROOT)}{line}"


def nodes(paths: list[Path]) -> Iterator[tuple[Path, ast.AST]]:
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            yield path, node


def imported(node: ast.AST) -> list[str]:
    """Full names that a statement imports: ``from a import b`` gives ``a`` and ``a.b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def test_the_environment_is_read_in_one_place() -> None:
    names = {"os.environ", "os.getenv", "os.environb", "os.putenv"}
    found = [
        where(path, node)
        for path, node in nodes(SHIPPED)
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in names) or names & set(imported(node))
    ]
    assert [place for place in found if not place.startswith("medseg/core/environment.py")] == []


def test_every_file_has_a_name() -> None:
    assert [where(path) for path in PYTHON if path.stem in NAMELESS or path.parent.name in NAMELESS] == []


def test_nothing_read_from_a_file_is_executed() -> None:
    found = []
    for path, node in nodes(SHIPPED):
        if RUNS_CODE & {name.split(".")[0] for name in imported(node)}:
            found.append(where(path, node))
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            allows_pickle = any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords
            )
            only_weights = ("weights_only", "True") in {(word.arg, ast.unparse(word.value)) for word in node.keywords}
            safely = call == "torch.load" and only_weights
            if (call in {"torch.load", "yaml.load", "yaml.unsafe_load"} and not safely) or allows_pickle:
                found.append(where(path, node))
    assert found == []


def test_nothing_inside_imports_bare_medseg() -> None:
    assert [where(path, node) for path, node in nodes(LIBRARY) if "medseg" in imported(node)] == []


def test_protocols_can_be_checked_at_run_time() -> None:
    found = [
        where(path, node)
        for path, node in nodes(LIBRARY)
        if isinstance(node, ast.ClassDef)
        and "Protocol" in {ast.unparse(base).split("[")[0] for base in node.bases}
        and "runtime_checkable" not in {ast.unparse(decorator) for decorator in node.decorator_list}
    ]
    assert found == [], "the import hook of tests/conftest.py cannot check annotations that name them"


def test_torch_distributed_has_one_home() -> None:
    found = [where(path, node) for path, node in nodes(SHIPPED) if "torch.distributed" in imported(node)]
    assert [place for place in found if not place.startswith("medseg/engine/distributed/")] == []


def test_every_folder_of_medseg_is_a_room_with_a_layer() -> None:
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    with_layer = {room.strip() for layer in layers for room in layer.split("|")}
    folders = {path.relative_to(ROOT / "medseg").parts[0] for path in LIBRARY if path.parent != ROOT / "medseg"}
    assert folders <= with_layer
    assert [where(path) for path in LIBRARY if not (path.parent / "__init__.py").exists()] == []


def test_no_file_is_big() -> None:
    assert [where(path) for path in FILES if path.stat().st_size > MAX_FILE_BYTES] == []


def test_nothing_is_left_for_later_in_a_comment() -> None:
    later = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK"]) + r")\b")
    assert [where(path) for path in TEXTS if later.search(path.read_text(encoding="utf-8"))] == []


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    path_of_a_machine = re.compile(r"(?<![\w./-])/(?:root|home|work|mnt|srv|Users)/\w")
    assert [where(path) for path in TEXTS if path_of_a_machine.search(path.read_text(encoding="utf-8"))] == []
    assert [where(path) for path in SETUP if re.search(r"://|index-url", path.read_text(encoding="utf-8"))] == [], (
        "pip's own settings"
    )


def test_every_dependency_has_a_tested_version_in_its_range() -> None:
    pins = {}
    for line in (ROOT / "requirements/constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    wanted = [Requirement(text) for group in [project["dependencies"], *extras] for text in group]
    assert [
        str(need) for need in wanted if not need.specifier.contains(pins.get(canonicalize_name(need.name), "0"))
    ] == []


def test_the_house_plan_names_every_module_and_no_other() -> None:
    plan = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = plan[plan.index("## Rooms") : plan.index("## Rooms to come")]
    named = set(re.findall(r"\b\w+\.py\b", rooms))
    real = {path.name for path in SHIPPED if path.name != "__init__.py"}
    assert sorted(real - named) == [], "modules that docs/architecture.md does not name"
    assert sorted(named - real) == [], "modules that only docs/architecture.md names"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first, last = function.body[0], function.body[-1]
    has_docstring = ast.get_docstring(function) is not None
    start = first.end_lineno + 1 if has_docstring else first.lineno
    return max(0, last.end_lineno - start + 1)


def test_sizes_are_told() -> None:
    """Warns only, until the house is read again as a whole."""
    told = [
        f"{where(path)}: {lines} lines, {MAX_FILE_LINES} are enough"
        for path in SHIPPED
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    ]
    for path, node in nodes(SHIPPED):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = body_lines(node)
        parameters = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        num_parameters = len([parameter for parameter in parameters if parameter.arg not in {"self", "cls"}])
        if lines > MAX_BODY_LINES:
            told.append(f"{where(path, node)} {node.name}: body of {lines} lines, {MAX_BODY_LINES} are enough")
        if num_parameters > MAX_PARAMETERS and not path.is_relative_to(ROOT / "pipelines"):
            told.append(f"{where(path, node)} {node.name}: {num_parameters} parameters, {MAX_PARAMETERS} are enough")
    for line in told:
        warnings.warn(line, stacklevel=1)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ENTRY_POINTS = [value.split(":")[0] for value in PROJECT["project"]["entry-points"]["medseg.tasks"].values()]
CONFIGS = [module_name(path) for path in LIBRARY if path.name == "config.py"]
TASK_FILES = [module_name(path) for path in sorted((ROOT / "medseg/tasks").glob("*/files.py"))]
LIGHT = ["medseg", PROJECT["project"]["scripts"]["medseg"].split(":")[0], *ENTRY_POINTS, *CONFIGS, *TASK_FILES]
WITHOUT_TORCH = ("core", "io", "metrics", "inference")
FILE_TO_LABEL_MAP = [
    module_name(path)
    for path in LIBRARY
    if path.relative_to(ROOT / "medseg").parts[0] in WITHOUT_TORCH
    and path not in (ROOT / "medseg/inference/runtimes" / name for name in ("torch.py", "graph.py"))
] + [
    f"medseg.data.{name}"
    for name in (
        "fingerprint",
        "plan",
        "preparation",
        "prepare_nnunet",
        "resample",
        "restore",
        "shear",
        "spline",
        "splits",
    )
]


def heavy_modules_after_importing(names: list[str]) -> str:
    program = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'monai', 'torchvision', 'tensorboard'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("name", sorted(set(LIGHT)))
def test_what_every_command_imports_is_light(name: str) -> None:
    assert heavy_modules_after_importing([name]) == "[]"


def test_the_way_from_file_to_label_map_needs_no_torch() -> None:
    assert heavy_modules_after_importing(FILE_TO_LABEL_MAP) == "[]"
