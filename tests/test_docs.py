"""What is written about the library: complete docstrings, an API page with every name, notebooks without outputs."""

import importlib
import inspect
import json
import pathlib
import re

import pytest

import smoothmax as sm

ROOT = pathlib.Path(__file__).parent.parent
ADAPTERS = (
    "smoothmax.interop.flax.attention_fn",
    "smoothmax.interop.haiku.MultiHeadAttention",
    "smoothmax.interop.equinox.MultiheadAttention",
)
NAMES = (name for name, item in vars(sm).items() if not name.startswith("_") and not inspect.ismodule(item))
PUBLIC = (*(f"smoothmax.{name}" for name in NAMES), *ADAPTERS)
SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Example:", "Reference:")


def named(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_one_version():
    changelog, citation = (ROOT / "CHANGELOG.md").read_text(), (ROOT / "CITATION.cff").read_text()
    version, date = re.search(r"^## ([\d.]+) \(([\d-]+)\)$", changelog, re.M).groups()
    assert version == sm.__version__ == re.search(r"^version: (\S+)$", citation, re.M).group(1)
    assert date == re.search(r"^date-released: (\S+)$", citation, re.M).group(1)


def test_there_are_public_names():
    assert {"smoothmax.softmax", "smoothmax.conjugate", "smoothmax.OWL", *ADAPTERS} <= set(PUBLIC)


def test_the_api_page_names_all_that_is_public_and_nothing_else():
    page = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^::: (\S+)$", page, re.M)) == sorted(PUBLIC)


@pytest.mark.parametrize("path", PUBLIC)
def test_docstrings_are_complete_and_in_order(path):
    if path in ADAPTERS:
        pytest.importorskip(path.split(".")[2])
    text = inspect.getdoc(named(path))
    found = [line for line in text.splitlines() if line in SECTIONS]
    assert found == sorted(found, key=SECTIONS.index), "sections out of order"
    assert {"Example:", "Reference:"} <= set(found) and ">>> " in text
    item = named(path)
    if inspect.isfunction(item):
        assert {"Args:", "Returns:"} <= set(found)
        missing = [
            p for p in inspect.signature(item).parameters if not re.search(rf"^ +\*{{0,2}}.*\b{p}\b.*:", text, re.M)
        ]
        assert not missing, f"arguments without a word: {missing}"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_small_without_outputs_use_public_names_and_are_in_the_gallery(path):
    text = path.read_text()
    cells = json.loads(text)["cells"]
    assert len(text) < 30_000
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert not re.search(r"smoothmax\._|sm\._", text)
    drawn = {f"{i:02}.png" for i, cell in enumerate(cells) if "plt.show()" in "".join(cell["source"])}
    shown = {picture.name for picture in (ROOT / "docs" / "gallery" / path.stem).glob("*.png")}
    assert drawn == shown, f"the gallery is out of date: run python docs/gallery.py {path.stem}"
