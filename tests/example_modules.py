"""The examples, imported once for their tests: a file that asks for them is skipped where what they stand on is not
installed."""

import pathlib
import sys
import warnings

import pytest

for needed in ("flax", "optax", "sacrebleu", "rouge_score", "tqdm", "matplotlib", "safetensors", "tyro"):
    pytest.importorskip(needed)

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
# The libraries that the examples stand on import with warnings of their own.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from examples import (
        cli,
        compare,
        corpora,
        data,
        entailment,
        mappings,
        metrics,
        options,
        report,
        summarization,
        train,
        translation,
    )

__all__ = ["cli", "compare", "corpora", "data", "entailment", "mappings", "metrics", "options", "report"]
__all__ += ["MARKS", "TASKS", "summarization", "train", "translation"]

TASKS = {module.TASK.name: module.TASK for module in (entailment, translation, summarization)}
MARKS = [
    pytest.mark.usefixtures("no_x64"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.xdist_group("examples"),  # libraries that score and draw take seconds to import: in one worker
]
