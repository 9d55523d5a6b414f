"""The training loop: one compiled step, validation after each epoch, checkpoints that resume exactly."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import smoothmax as sm

from .data import Batches, DataError
from .options import Loss, Settings
from .running import CHECKPOINT, SAVE_EVERY, load_arrays, save_arrays

REGULARIZERS = {"softmax": sm.Shannon(), "sparsemax": sm.SquaredL2(), "entmax": sm.Tsallis(1.5)}


@dataclasses.dataclass
class Progress:
    """Where training stands, beside the arrays: all that a resumed run needs to go on with the same numbers."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # batches of this epoch already used
    loss: float = 0.0  # their sum
    seconds: float = 0.0  # spent on them
    best_loss: float = float("inf")
    best_epoch: int = -1
    history: list = dataclasses.field(default_factory=list)  # a dictionary for each epoch


def optimizer(rate: float):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def start(model, rate: float, batch: dict, seed: int) -> dict:
    """Fresh arrays: parameters, optimizer state, and the best parameters so far."""
    return compile_start(model, rate)(key_of(seed), batch)


def key_of(seed: int):
    """The generator that compiles fastest and costs dropout least."""
    return jax.random.key(seed, impl="rbg")


@functools.cache
def compile_start(model, rate: float):
    def fresh(key, batch):
        params = model.init(key, batch)["params"]
        return {"params": params, "optimizer": optimizer(rate).init(params), "best": jax.tree.map(jnp.copy, params)}

    return jax.jit(fresh)


@functools.cache
def compile_step(model, rate: float, kind: Loss):
    """A step (params, optimizer state, sum of losses, key, step number, batch) -> the first three after it."""

    def loss(params, batch, key):
        logits, _ = model.apply({"params": params}, batch, train=True, rngs={"dropout": key})
        return _mean_loss(model, kind, logits, batch)

    def step(params, state, total, key, number, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch, jax.random.fold_in(key, number))
        updates, state = optimizer(rate).update(gradient, state, params)
        return optax.apply_updates(params, updates), state, total + value

    return jax.jit(step, donate_argnums=(0, 1, 2))


@functools.cache
def compile_forward(model, kind: Loss):
    """(params, batch) -> (sum of losses, number of answers, weights, rows of attention that count, logits)."""

    def forward(params, batch):
        logits, weights = model.apply({"params": params}, batch)
        _, counts = model.answers(batch)
        mean = _mean_loss(model, kind, logits, batch)
        return mean * counts.sum(), counts.sum(), weights, model.rows(batch), logits

    return jax.jit(forward)


@functools.cache
def compile_losses(model, kind: Loss):
    """The first two of `compile_forward`, for validation."""
    return jax.jit(lambda params, batch: compile_forward(model, kind)(params, batch)[:2])


def _mean_loss(model, kind: Loss, logits, batch):
    answers, counts = model.answers(batch)
    losses = sm.fenchel_young_loss_with_integer_labels(logits, answers, REGULARIZERS[kind])
    return (losses * counts).sum() / jnp.maximum(counts.sum(), 1.0)


def mean_loss(model, kind: Loss, params: dict, batches: Batches) -> float:
    losses = compile_losses(model, kind)
    parts = [losses(params, batch.arrays) for batch in batches.in_order()]  # all under way before the first is fetched
    total, count = np.sum(jax.device_get(parts), axis=0)
    return float(total / max(count, 1.0))


@dataclasses.dataclass
class Training:
    """A run on its way: arrays and progress change in place, so that they can be saved at any step."""

    model: Any
    settings: Settings
    seed: int
    arrays: dict
    progress: Progress
    train: Batches
    valid: Batches
    save: Callable[[], None]

    def fit(self, asked: list) -> bool:
        """Trains until the budget of steps or epochs is spent, whichever comes first; False when `asked` to stop.

        `save` is called after each epoch, each minute, on interruption and at the end. The last validation, inside an
        epoch, is not part of the saved state: a run that goes on from here later must not know that it once stopped
        here.
        """
        progress, settings, never = self.progress, self.settings, float("inf")
        limit = min(settings.steps or never, (settings.epochs or never) * len(self.train))
        with tqdm(total=limit, initial=progress.step, unit="step", mininterval=1.0) as bar:
            while progress.step < limit and not asked:
                pieces = self.train.shuffled(self.seed, progress.epoch)
                self._steps(pieces[progress.position :], limit, asked, bar)
                if progress.position == len(pieces):
                    self._end_epoch(len(pieces), bar)
            self.save()
        if asked:
            return False
        if progress.position:
            self.validate()
        if progress.best_epoch < 0:
            raise DataError(f"the validation loss was never a number: try a lower --rate than {settings.rate}")
        return True

    def _steps(self, pieces, limit: float, asked: list, bar):
        progress, arrays = self.progress, self.arrays
        step, key = compile_step(self.model, self.settings.rate, self.settings.loss), key_of(self.seed)
        began = saved = time.monotonic()
        spent, total = progress.seconds, jnp.float32(progress.loss)
        for piece in pieces:
            if progress.step >= limit or asked:
                break
            arrays["params"], arrays["optimizer"], total = step(
                arrays["params"], arrays["optimizer"], total, key, progress.step, self.train.take(piece).arrays
            )
            progress.step, progress.position = progress.step + 1, progress.position + 1
            bar.update()
            if time.monotonic() - saved > SAVE_EVERY:
                progress.loss, progress.seconds = float(total), spent + time.monotonic() - began
                self.save()
                saved = time.monotonic()
        progress.loss = float(total)  # waits for the last step
        progress.seconds = spent + time.monotonic() - began

    def _end_epoch(self, steps: int, bar):
        progress = self.progress
        train_loss, valid_loss = progress.loss / steps, self.validate()
        progress.history.append(
            {
                "epoch": progress.epoch + 1,
                "train_loss": train_loss,
                "valid_loss": valid_loss,
                "seconds": progress.seconds,
            }
        )
        progress.epoch, progress.position, progress.loss, progress.seconds = progress.epoch + 1, 0, 0.0, 0.0
        bar.set_postfix(train=f"{train_loss:.3f}", valid=f"{valid_loss:.3f}", refresh=False)
        self.save()

    def validate(self) -> float:
        """The validation loss; keeps the parameters where it was least."""
        loss = mean_loss(self.model, self.settings.loss, self.arrays["params"], self.valid)
        if loss < self.progress.best_loss:
            self.progress.best_loss, self.progress.best_epoch = loss, self.progress.epoch + 1
            self.arrays["best"] = jax.tree.map(jnp.copy, self.arrays["params"])
        return loss


# ---------------------------------------------------------------- checkpoints


def _named(tree) -> dict:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def save_checkpoint(folder: pathlib.Path, arrays: dict, progress: Progress, settings: dict):
    """Arrays in safetensors' plain form, the rest as JSON in its header."""
    header = {"progress": json.dumps(dataclasses.asdict(progress)), "settings": json.dumps(settings)}
    tensors = {name: jax.device_get(leaf) for name, leaf in _named(arrays).items()}
    save_arrays(folder / CHECKPOINT, tensors, header)


def load_checkpoint(folder: pathlib.Path, arrays: dict, settings: dict) -> tuple[dict, Progress]:
    """The stored arrays in the structure of `arrays`; the run's settings must be those of the checkpoint."""
    path = folder / CHECKPOINT
    stored, header = load_arrays(path)
    before = json.loads(header.get("settings", "{}"))
    for key, value in json.loads(json.dumps(settings)).items():
        if before.get(key) != value:
            raise DataError(
                f"{path} was made with {key} = {before.get(key)}, now it is {value}: use the same, or another --out"
            )

    def restore(path_, leaf):
        tensor = stored[jax.tree_util.keystr(path_, simple=True, separator="/")]
        return jnp.asarray(tensor, leaf.dtype)

    return jax.tree_util.tree_map_with_path(restore, arrays), Progress(**json.loads(header["progress"]))
