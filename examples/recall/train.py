"""One run from its options to its files: training that can stop and go on, tests at every length, pictures."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import smoothmax as sm

from ..running import CHECKPOINT, METRICS, SAVE_EVERY, load_arrays, save_arrays, stoppable, write_text
from . import tasks
from .model import Transformer
from .options import Options
from .pictures import save_attention

TEST_SEED = 2**31  # away from those of training
QUERIES_AT_A_TIME = 256  # in tests, beyond which the weights of a long sequence would not fit


class State(NamedTuple):
    params: Any
    optimizer: Any
    step: int
    loss: float  # the last one looked at


def run(options: Options) -> dict[str, Any]:
    """Trains and tests; returns what it writes to metrics.json. A finished run is read, an unfinished one goes on."""
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / METRICS).exists():
        return json.loads((folder / METRICS).read_text())
    started = time.perf_counter()
    with stoppable() as asked:
        graph, params = nnx.split(Transformer(options))
        fresh = State(params, optimizer(options).init(params), 0, float("nan"))
        state = train(options, graph, restored(options, fresh), asked)
    model = nnx.merge(graph, state.params)
    result = {
        "name": options.name,
        **options.decisive(),
        "loss": state.loss,
        "learned": learned(model),
        "tests": test(options, graph, state.params),
        "seconds": round(time.perf_counter() - started, 1),
        "jax": jax.__version__,
    }
    save_attention(folder / "attention.png", *example_weights(options, model))
    write_text(folder / METRICS, json.dumps(result, indent=1) + "\n")  # last, since it says that the run is finished
    return result


# --- Training ----------------------------------------------------------------------------------------------


def optimizer(options: Options) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, options.rate, max(1, options.steps // 20), options.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def train(options: Options, graph: Any, state: State, asked: list) -> State:
    def loss(params: Any, batch: tasks.Batch) -> jax.Array:
        model = nnx.merge(graph, params)
        # Tokens that are not asked are masked as a whole: no loss, no gradient.
        values = sm.linear_fenchel_young_loss(
            model(batch.inputs), model.kernel(), batch.targets, sm.Shannon(), where=batch.asked[..., None]
        )
        return values.sum() / batch.asked.sum()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, moments: Any, batch: tasks.Batch) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, moments = optimizer(options).update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    last, saved = state.loss, time.monotonic()
    with tqdm(desc=f"{options.task} {options.name}", initial=state.step, total=options.steps) as bar:
        while state.step < options.steps and not asked:
            rng = np.random.default_rng((options.seed, state.step))
            batch = tasks.draw(options.task, rng, options.batch, options.length, vary=True)
            params, moments, value = step(state.params, state.optimizer, batch)
            state = State(params, moments, state.step + 1, last)
            if state.step % 50 == 0 or state.step == options.steps:  # to wait for each loss would hold up the next step
                last = float(value)
                state = state._replace(loss=last)
                bar.set_postfix(loss=f"{last:.3f}")
            bar.update()
            if time.monotonic() - saved > SAVE_EVERY:
                _save(options, state)
                saved = time.monotonic()
    _save(options, state)
    if asked:
        raise SystemExit(f"stopped at step {state.step}: the same command goes on")
    return state


def _save(options: Options, state: State) -> None:
    folder = options.folder
    leaves = jax.tree.leaves((state.params, state.optimizer))
    header = {"options": json.dumps(options.decisive()), "step": str(state.step), "loss": str(state.loss)}
    tensors = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    save_arrays(folder / CHECKPOINT, tensors, header)


def restored(options: Options, fresh: State) -> State:
    """The checkpoint, if there is one, in the form of the fresh state."""
    folder = options.folder
    if not (folder / CHECKPOINT).exists():
        return fresh
    stored, header = load_arrays(folder / CHECKPOINT)
    was, now = json.loads(header.get("options", "{}")), options.decisive()
    for name in now:
        if was.get(name) != now[name]:
            raise SystemExit(f"{folder} was made with {name}={was.get(name)}, now {now[name]}: take another --out")
    leaves = [jnp.asarray(stored[key]) for key in sorted(stored)]
    params, moments = jax.tree.unflatten(jax.tree.structure((fresh.params, fresh.optimizer)), leaves)
    return State(params, moments, int(header["step"]), float(header["loss"]))


# --- Tests -------------------------------------------------------------------------------------------------


def test(options: Options, graph: Any, params: Any) -> list[dict[str, float]]:
    """Exact match and the share of right answers at each length. All answers right is what counts as a match."""

    @jax.jit
    def right(params: Any, batch: tasks.Batch) -> jax.Array:
        model = nnx.merge(graph, params)
        size = QUERIES_AT_A_TIME if batch.inputs.shape[1] > 2 * QUERIES_AT_A_TIME else None
        scores = model(batch.inputs, block_size=size) @ model.kernel()
        return (jnp.argmax(scores, -1) == batch.targets) | ~batch.asked

    results = []
    for i, multiple in enumerate(options.multiples):
        length = multiple * options.length
        count = max(min(8, options.examples), options.examples >> max(0, i - 2))
        batch = tasks.draw(options.task, np.random.default_rng(TEST_SEED + multiple), count, length, vary=False)
        pieces = [jax.tree.map(lambda a, b=b: a[b : b + 1], batch) for b in range(count)]
        found = [right(params, piece) for piece in tqdm(pieces, desc=f"test at {length}", leave=False)]
        hits = np.concatenate([np.asarray(one) for one in found])
        share = (hits & batch.asked).sum() / batch.asked.sum()
        exact = hits.all(axis=1).mean()
        results.append({"length": length, "examples": count, "exact": float(exact), "answers": float(share)})
    return results


def learned(model: Transformer) -> dict[str, list[list[float]]]:
    """Alpha, base and slope of each layer and head, where they are trained."""
    found = {}
    for name in ("alpha", "base", "slope"):
        with contextlib.suppress(AttributeError):
            raw = [getattr(block.attention, name)[...] for block in model.blocks]
            values = [sm.bounded(r, 1.0, 2.0) if name == "alpha" else r for r in raw]
            found[name] = [[round(float(v), 4) for v in value.ravel()] for value in values]
    return found


def example_weights(options: Options, model: Transformer) -> tuple[np.ndarray, np.ndarray]:
    """Attention weights (layers, heads, L, L) of one sequence of the training length, and its asked positions."""
    batch = tasks.draw(options.task, np.random.default_rng(TEST_SEED), 1, options.length, vary=False)

    @nnx.jit
    def intermediates(model: Transformer, inputs: jax.Array) -> Any:
        if hasattr(nnx, "capture"):
            return nnx.capture(model, nnx.Intermediate)(inputs, sow_weights=True)[1]
        model(inputs, sow_weights=True)  # before Flax 0.12
        return nnx.pop(model, nnx.Intermediate)

    sown = jax.tree.leaves(intermediates(model, jnp.asarray(batch.inputs)))
    return np.stack([np.asarray(weights)[0] for weights in sown]), batch.asked[0]
