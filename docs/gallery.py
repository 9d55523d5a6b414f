"""The gallery's pages, made of the notebooks.

As a hook of mkdocs it writes a page for each: what stands in the notebook, and after each cell what it drew and printed
when the notebooks were last run by `python docs/gallery.py`, which needs the extra `notebooks` and takes a few minutes.
"""

from __future__ import annotations

import base64
import io
import json
import pathlib
import sys
from typing import Any

DOCS = pathlib.Path(__file__).parent
NOTEBOOKS = DOCS.parent / "notebooks"
RESOLUTION = "%config InlineBackend.rc = {'figure.dpi': 90, 'savefig.facecolor': 'white'}"
COLOURS = 96  # of a stored picture: enough for these, at a third of the size


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs once it has found the files of the site."""
    from mkdocs.structure.files import File

    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        files.append(File.generated(config, f"gallery/{path.stem}.md", content=page(path)))
    return files


def page(path: pathlib.Path) -> str:
    """The notebook as Markdown, with its stored outputs."""
    parts = []
    for cell, picture, text in with_outputs(path):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        if text.exists():
            parts.append(f"```text\n{text.read_text()}```")
        if picture.exists():
            parts.append(f"![What the code above draws]({path.stem}/{picture.name})")
    parts.append(f"*The notebook is `notebooks/{path.name}`; CI runs it.*")
    return "\n\n".join(parts)


def with_outputs(path: pathlib.Path) -> list[tuple[dict[str, Any], pathlib.Path, pathlib.Path]]:
    """The cells, each with the places of its picture and of what it prints."""
    folder = DOCS / "gallery" / path.stem
    cells = json.loads(path.read_text())["cells"]
    return [(cell, folder / f"{i:02}.png", folder / f"{i:02}.txt") for i, cell in enumerate(cells)]


def execute(path: pathlib.Path) -> None:
    """Runs a notebook, and stores what its cells draw and print."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    setting = nbformat.v4.new_code_cell(RESOLUTION)
    notebook.cells.insert(0, setting)
    NotebookClient(notebook, timeout=600).execute()
    (DOCS / "gallery" / path.stem).mkdir(parents=True, exist_ok=True)
    for cell, (_, picture, text) in zip(notebook.cells[1:], with_outputs(path), strict=True):
        outputs = cell.get("outputs", [])
        for place in (picture, text):
            place.unlink(missing_ok=True)
        printed = "".join(
            output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"
        )
        if printed:
            text.write_text(printed)
        for output in outputs:
            if "image/png" in output.get("data", {}):
                store(base64.b64decode(output.data["image/png"]), picture)


def store(drawn: bytes, picture: pathlib.Path) -> None:
    """Writes a picture with fewer colours."""
    from PIL import Image

    Image.open(io.BytesIO(drawn)).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        execute(NOTEBOOKS / f"{name}.ipynb")
