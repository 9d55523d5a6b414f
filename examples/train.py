"""The training loop: one compiled step, validation after each epoch, checkpoints that resume exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import optax
import safetensors
import safetensors.numpy
from tqdm import tqdm

from .data import Batches, DataError

CHECKPOINT = "checkpoint.safetensors"
SAVE_EVERY = 60.0  # seconds


@dataclasses.dataclass
class Progress:
    """Where training stands, beside the arrays: all that a resumed run needs to go on with the same numbers."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # batches of this epoch already used
    loss: float = 0.0  # their sum
    best_loss: float = float("inf")
    best_epoch: int = -1
    history: list = dataclasses.field(default_factory=list)
    durations: dict = dataclasses.field(default_factory=dict)  # shape: [steps, seconds], compilation left out


def optimizer(rate: float):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def start(model, rate: float, batch, seed: int) -> dict:
    """Fresh arrays: parameters, optimizer state, and the best parameters so far."""
    params = compile_start(model)(key_of(seed), batch)
    return {"params": params, "optimizer": optimizer(rate).init(params), "best": jax.tree.map(jnp.copy, params)}


def key_of(seed: int):
    """The generator that compiles fastest and costs dropout least."""
    return jax.random.key(seed, impl="rbg")


@functools.cache
def compile_start(model):
    return jax.jit(lambda key, batch: model.init(key, batch)["params"])


@functools.cache
def compile_step(model, rate: float):
    """A step (params, optimizer state, key, step number, batch) -> (params, optimizer state, loss)."""

    def loss(params, batch, key):
        logits, _ = model.apply({"params": params}, batch, train=True, rngs={"dropout": key})
        return _mean_loss(model, logits, batch)

    def step(params, state, key, number, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch, jax.random.fold_in(key, number))
        updates, state = optimizer(rate).update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return jax.jit(step, donate_argnums=(0, 1))


@functools.cache
def compile_forward(model):
    """(params, batch) -> (sum of losses, number of answers, weights, rows of attention that count, logits)."""

    def forward(params, batch):
        logits, weights = model.apply({"params": params}, batch)
        _, counts = model.answers(batch)
        return _mean_loss(model, logits, batch) * counts.sum(), counts.sum(), weights, model.rows(batch), logits

    return jax.jit(forward)


def _mean_loss(model, logits, batch):
    answers, counts = model.answers(batch)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, answers)
    return (losses * counts).sum() / jnp.maximum(counts.sum(), 1.0)


def mean_loss(model, params, batches: Batches) -> float:
    forward, total, count = compile_forward(model), 0.0, 0.0
    for batch in batches.in_order():
        losses, answers, *_ = forward(params, batch.arrays)
        total, count = total + float(losses), count + float(answers)
    return total / max(count, 1.0)


def fit(
    model,
    arrays: dict,
    progress: Progress,
    train: Batches,
    valid: Batches,
    *,
    rate: float,
    seed: int,
    steps: int | None,
    epochs: int | None,
    save,
) -> bool:
    """Trains in place until `steps` or `epochs` is reached, whichever comes first; False when interrupted.

    `save` is called with nothing to save: after each epoch, each minute, on interruption and at the
    end. The last validation, inside an epoch, is not part of the saved state: a run that goes on
    from here later must not know that it once stopped here.
    """
    step_function, key = compile_step(model, rate), key_of(seed)
    limit = min(
        steps if steps is not None else float("inf"), (epochs if epochs is not None else float("inf")) * len(train)
    )
    compiled, saved = set(), time.monotonic()
    with _interruption() as asked, tqdm(total=limit, initial=progress.step, unit="step", mininterval=1.0) as bar:
        while progress.step < limit and not asked:
            pieces = train.shuffled(seed, progress.epoch)
            for piece in pieces[progress.position :]:
                if progress.step >= limit or asked:
                    break
                batch = train.take(piece).arrays
                began = time.perf_counter()
                arrays["params"], arrays["optimizer"], loss = step_function(
                    arrays["params"], arrays["optimizer"], key, progress.step, batch
                )
                progress.loss += float(loss)
                shape = f"{batch['source'].shape[1]}x{batch['target'].shape[1]}"
                if shape in compiled:
                    count, seconds = progress.durations.get(shape, (0, 0.0))
                    progress.durations[shape] = [count + 1, seconds + time.perf_counter() - began]
                compiled.add(shape)
                progress.step += 1
                progress.position += 1
                bar.update()
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
            if progress.position == len(pieces):
                train_loss = progress.loss / len(pieces)
                valid_loss = validate(model, arrays, progress, valid)
                progress.history.append(
                    {"epoch": progress.epoch + 1, "train_loss": train_loss, "valid_loss": valid_loss}
                )
                progress.epoch, progress.position, progress.loss = progress.epoch + 1, 0, 0.0
                bar.set_postfix(train=f"{train_loss:.3f}", valid=f"{valid_loss:.3f}", refresh=False)
                save()
        save()
    if progress.step < limit:
        return False
    if progress.position:
        validate(model, arrays, progress, valid)
    return True


def validate(model, arrays: dict, progress: Progress, valid: Batches) -> float:
    """The validation loss; keeps the parameters where it was least."""
    loss = mean_loss(model, arrays["params"], valid)
    if loss < progress.best_loss:
        progress.best_loss, progress.best_epoch = loss, progress.epoch + 1
        arrays["best"] = jax.tree.map(jnp.copy, arrays["params"])
    return loss


@contextlib.contextmanager
def _interruption():
    """A list that fills on Ctrl-C or SIGTERM: the loop ends after the step at hand. A second one ends at once."""
    asked = []

    def note(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: no handlers, no Ctrl-C either
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- checkpoints


def _named(tree) -> dict:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def save_checkpoint(folder: pathlib.Path, arrays: dict, progress: Progress, settings: dict):
    """Arrays in safetensors' plain form, the rest as JSON in its header. Half a file never replaces a whole one."""
    header = {"progress": json.dumps(dataclasses.asdict(progress)), "settings": json.dumps(settings)}
    tensors = {name: jax.device_get(leaf) for name, leaf in _named(arrays).items()}
    part = folder / f"{CHECKPOINT}.part"
    safetensors.numpy.save_file(tensors, part, metadata=header)
    os.replace(part, folder / CHECKPOINT)


def load_checkpoint(folder: pathlib.Path, arrays: dict, settings: dict) -> tuple[dict, Progress]:
    """The stored arrays in the structure of `arrays`; the run's settings must be those of the checkpoint."""
    path = folder / CHECKPOINT
    with safetensors.safe_open(path, framework="numpy") as file:
        header = file.metadata()
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    before = json.loads(header["settings"])
    for key, value in json.loads(json.dumps(settings)).items():
        if before.get(key) != value:
            raise DataError(
                f"{path} was made with {key} = {before.get(key)}, now it is {value}: use the same, or another --out"
            )

    def restore(path_, leaf):
        tensor = stored[jax.tree_util.keystr(path_, simple=True, separator="/")]
        return jnp.asarray(tensor, leaf.dtype)

    return jax.tree_util.tree_map_with_path(restore, arrays), Progress(**json.loads(header["progress"]))
