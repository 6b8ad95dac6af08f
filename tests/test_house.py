"""The structure: who may import whom, what the front door holds, what importing costs."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import subprocess
import sys
import types

import pytest
from flax import nnx as flax_nnx

import flax_attn
from flax_attn import attention, linen, maps, nnx, positions, vision, visualize
from flax_attn.linen._module import LayerModule
from flax_attn.nnx._layers import LayerOptions

ROOT = pathlib.Path(flax_attn.__file__).parent

# A package imports only those on rows above its own. (Linen and NNX share `_modules`: neither may
# import the other.)
ROWS = [
    {"_checks", "_functions", "_integers", "_jax", "_pytree", "_record"},
    {"_devices", "_fields", "_orders"},
    {"_cpu"},
    {"maps", "coords"},
    {"masks", "scores", "normalizers", "positions"},
    {"attention", "linear"},
    {"vision"},
    {"caches", "sharded"},
    {"_modules"},
    {"_latent_attention"},
    {"linen", "nnx"},
    {"visualize"},
]
ALLOWED = {("_record", "_pytree")}
OUTSIDE = {"flax": {"linen", "nnx"}, "matplotlib": {"visualize"}}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts != ("__init__",):
            yield path, parts[0]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_module_imports_only_rows_above_its_own():
    row = {name: i for i, names in enumerate(ROWS) for name in names}
    wrong = []
    for path, package in modules():
        assert package in row, f"{package} has no row in the house"
        for name in imported(path):
            top, *rest = name.split(".")
            if top == "flax_attn":
                other = rest[0]
                is_above = other == package or row[other] < row[package]
                fine = is_above or (package, other) in ALLOWED
            else:
                fine = package in OUTSIDE.get(top, {package})
            if not fine:
                wrong.append(f"{path} imports {name}")
    assert not wrong


PRIVATE = ("jax._src", "jax.extend.core", "jax.interpreters", "jaxlib")


def test_private_parts_of_jax_and_flax_are_touched_in_one_package():
    wrong = []
    for path, package in modules():
        if package != "_jax":
            wrong += [f"{path}: {name}" for name in imported(path) if name.startswith(PRIVATE)]
            wrong += [f"{path}: captures"] * ("__captures__" in path.read_text())
    assert not wrong, "put it into _jax"


@pytest.mark.parametrize(
    "name", ["flax_attn", *(f"flax_attn.{p}" for p in ("attention", "maps", "positions", "vision"))]
)
def test_the_functional_core_imports_no_flax(name):
    code = f"import sys, {name}; print([m for m in sys.modules if m.split('.')[0] == 'flax'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_linen_and_nnx_have_the_same_files_and_names():
    files = [{p.name for p in (ROOT / package).glob("*.py")} for package in ("linen", "nnx")]
    assert files[0] == files[1]
    assert linen.__all__ == nnx.__all__
    for package in (linen, nnx):
        base = importlib.import_module(f"{package.__name__}._module").Module
        for name in package.__all__:
            thing = getattr(package, name)
            assert not inspect.isclass(thing) or issubclass(thing, base), name


@pytest.mark.parametrize("package", ["linen", "nnx"])
def test_layers_are_those_that_sum_the_gradients_of_biases_in_float32(package):
    """Those of `_layers`; Flax's own sum them in the layer's dtype."""
    layers = {"Linear", "LinearGeneral", "Dense", "DenseGeneral", "Conv", "Einsum"}
    for path in (ROOT / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and path.name != "_layers.py":
                assert node.attr not in layers, f"{path}:{node.lineno}"


SURFACES = [
    "flax_attn",
    *(
        f"flax_attn.{name}"
        for name in flax_attn.__all__
        if isinstance(getattr(flax_attn, name), types.ModuleType)
    ),
]


@pytest.mark.parametrize("name", SURFACES)
def test_dir_and_star_show_the_public_names_only(name):
    package = importlib.import_module(name)
    assert dir(package) == sorted(package.__all__) == sorted(set(package.__all__))
    starred: dict = {}
    exec(f"from {name} import *", starred)
    assert set(starred) - {"__builtins__"} == set(package.__all__)
    for shown in package.__all__:
        thing = getattr(package, shown)
        assert shown[0] != "_"
        if name != "flax_attn":
            assert not isinstance(thing, types.ModuleType), shown
    own = {
        shown
        for shown, thing in vars(package).items()
        if shown[0] != "_"
        and not isinstance(thing, types.ModuleType)
        and getattr(thing, "__module__", "").startswith("flax_attn")
    }
    if hasattr(package, "__path__"):  # whose __init__ imports what it shows, and nothing else
        assert own <= set(package.__all__), own - set(package.__all__)


def test_no_private_file_has_the_name_of_something_public():
    """`nnx.cbam` would be a file where `vision.cbam` is a function."""
    functions = {*flax_attn.__all__, *attention.__all__, *vision.__all__}
    for name in SURFACES:
        package = importlib.import_module(name)
        files = {path.stem for path in pathlib.Path(package.__file__).parent.glob("[!_]*.py")}
        if name != "flax_attn" and hasattr(package, "__path__"):
            assert not files & (functions | set(package.__all__)), name


def test_linen_and_nnx_are_imported_when_they_are_used():
    code = """
import sys, flax_attn
assert "flax" not in sys.modules
dir(flax_attn)
assert "flax" not in sys.modules
assert flax_attn.nnx.CBAM.__name__ == flax_attn.linen.CBAM.__name__ == "CBAM"
from flax_attn import nnx
assert nnx is flax_attn.nnx is sys.modules["flax_attn.nnx"]
assert not hasattr(flax_attn, "torch")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def public():
    for package in (flax_attn, attention, maps, positions, vision, linen, nnx, visualize):
        for name, thing in vars(package).items():
            module = getattr(thing, "__module__", "")
            own = module.startswith("flax_attn") and not module.startswith("flax_attn._")
            if own and name[0] != "_" and (inspect.isfunction(thing) or inspect.isclass(thing)):
                yield f"{package.__name__}.{name}", thing


def parts_of_documentation(thing):
    """What the docstring of a class or a function must hold."""
    if inspect.isclass(thing):
        return ["Example:"]
    if thing.__name__.endswith("_gate"):
        return []
    stars = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    parameters = inspect.signature(thing).parameters.items()
    arguments = [f"  {stars.get(parameter.kind, '')}{name}: " for name, parameter in parameters]
    return ["Args:", "Returns:", "Example:", *arguments]


def test_public_names_are_documented():
    missing = []
    for name, thing in public():
        doc = inspect.getdoc(thing) or ""
        missing += [f"{name} has no docstring"] * (not doc)
        missing += [f"{name} {x.strip()}" for x in parts_of_documentation(thing) if x not in doc]
    assert not missing


def functions_of(cls):
    """The function that an NNX module calls, and the class of Flax whose constructor it takes."""
    wanted = cls.__name__.lower()
    for package in (vision, attention, positions):
        for name, function in vars(package).items():
            if name.replace("_", "") in (wanted, wanted.removesuffix("positions")):
                yield function
    if cls is nnx.MultiHeadAttention:
        yield flax_nnx.MultiHeadAttention


def test_each_option_of_a_module_is_documented():
    """By the class, or by its function, or for all modules by the package; Linen's by its twin."""
    package = inspect.getdoc(nnx)
    missing = []
    for name in (name for name in nnx.__all__ if inspect.isclass(vars(nnx)[name])):
        cls = getattr(nnx, name)
        docs = [inspect.getdoc(thing) for thing in (cls, *functions_of(cls))]
        options = set(inspect.signature(cls.__init__).parameters) - {"self", "layer_options"}
        for option in options:
            described = any(f"  {option}: " in doc for doc in docs) or f"`{option}`" in package
            missing += [f"{name} {option}"] * (not described)
        if f"`flax_attn.nnx.{name}`" not in inspect.getdoc(getattr(linen, name)):
            missing.append(f"linen.{name}: its twin")
    assert not missing


def test_the_options_of_layers_are_those_of_linens_base_class():
    fields = {field.name for field in dataclasses.fields(LayerModule)} - {"parent", "name"}
    assert set(LayerOptions.__annotations__) == fields - {"use_bias"}
    for option in fields:
        assert f"  {option}: " in inspect.getdoc(LayerModule)
        assert option == "use_bias" or f"  {option}: " in inspect.getdoc(LayerOptions)


def test_files_stay_small():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, path


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert flax_attn.__version__ == version("flax-attn")
