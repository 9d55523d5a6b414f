"""The rooms of the library and the direction of their imports, as CONTRIBUTING.md draws them."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "smoothmax"

# What each room imports beside itself; smoothmax/__init__.py only gathers names.
ALLOWED = {
    "_arrays": set(),
    "_cache": set(),
    "_kernels": {"_arrays"},
    "_parameters": {"_cache"},
    "_bounded": {"_arrays"},
    "_slices": {"_arrays", "_parameters"},
    "_solvers": {"_arrays", "_kernels"},
    "_regularizers": {"_arrays", "_cache", "_parameters", "_slices", "_solvers"},
    "_domains": {"_arrays", "_parameters", "_regularizers", "_solvers"},
    "_problem": {"_arrays", "_parameters", "_regularizers", "_domains"},
    "_rules": {"_arrays", "_cache", "_problem"},
    "_conjugate": {
        *("_arrays", "_cache", "_kernels", "_parameters", "_regularizers", "_domains", "_problem", "_rules", "_slices"),
    },
    "_expressions": {"_parameters", "_regularizers"},
    "_operators": {"_conjugate", "_expressions", "_parameters", "_regularizers", "_slices"},
    "_values": {"_conjugate", "_expressions", "_parameters", "_regularizers", "_slices"},
    "_selections": {"_arrays", "_conjugate", "_parameters", "_regularizers", "_domains", "_slices"},
    "_losses": {"_arrays", "_cache", "_conjugate", "_parameters", "_regularizers", "_slices"},
    "_scaling": {"_arrays", "_parameters", "_slices"},
    "_attention": {
        *("_arrays", "_conjugate", "_domains", "_kernels", "_operators", "_parameters", "_regularizers", "_scaling"),
    },
    "interop": {"_attention", "_operators"},
    "extend": {"_domains", "_kernels", "_parameters", "_regularizers"},
    "__main__": {"_kernels"},
}
FRAMEWORKS = {"flax", "haiku", "equinox"}


def _room(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: pathlib.Path):
    """The rooms and the outside packages that a file imports."""
    depth = len(path.relative_to(ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((None, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = (node.module or "").split(".")
            yield (module[1], None) if module[0] == "smoothmax" and len(module) > 1 else (None, module[0])
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            yield from ((name, None) for name in names)


# The folders of the kernels for accelerators, and what each may import beside itself.
KERNELS = ROOT / "_kernels" / "pallas"
MACHINES = {"shared": set(), "tpu": {"shared"}, "gpu": {"shared"}}

FILES = [p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = _room(path)
    assert room in ALLOWED, f"{room} is a new room: draw it in CONTRIBUTING.md and list it here"
    for imported, package in _imports(path):
        if imported is not None and (ROOT / imported).with_suffix("").name != room:
            assert imported in ALLOWED[room], f"{path.name} imports {imported}, which {room} may not"
        if room != "interop":
            assert package not in FRAMEWORKS, f"{path.name} imports {package}"


def _full_names(path: pathlib.Path):
    """What a file imports, each by its full name in parts."""
    package = ("smoothmax", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = package[: len(package) - node.level + 1] if node.level else ()
            module += tuple(node.module.split(".")) if node.module else ()
            yield from ((*module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*/*.py")), ids=lambda p: str(p.relative_to(KERNELS)))
def test_kernels_of_one_machine_know_no_other(path):
    folder, place = path.parent.name, ("smoothmax", *KERNELS.relative_to(ROOT).parts)
    assert folder in MACHINES, f"{folder} is a new folder: list it here"
    for name in _full_names(path):
        if name[: len(place)] == place and len(name) > len(place):
            imported = name[len(place)]
            assert imported in {folder, *MACHINES[folder]}, f"{path.name} imports {imported}, which {folder} may not"


def test_no_room_is_allowed_more_than_it_uses():
    used = {room: set() for room in ALLOWED}
    for path in FILES:
        used[_room(path)] |= {imported for imported, _ in _imports(path) if imported not in (None, _room(path))}
    assert used == ALLOWED


def test_importing_the_library_imports_no_framework():
    import subprocess
    import sys

    code = f"import sys, smoothmax, smoothmax.interop; print(sorted({FRAMEWORKS!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
