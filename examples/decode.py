"""Beam search, compiled once for each source length; a beam of width 1 is greedy decoding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .data import BEGIN, END, PAD, UNKNOWN, Batches, Example, Vocabulary


@functools.cache
def compile_search(model, width: int, length: int):
    """(params, source) -> words (B, length) and attention weights (B, length, S) of the best hypothesis.

    A hypothesis that has ended goes on with padding at no cost. At the end the hypotheses are
    compared by their mean log-probability for each word.
    """

    def search(params, source):
        apply = functools.partial(model.apply, {"params": params})
        memory, mask, state = apply(source, method="encode")
        batch, positions = source.shape
        memory, mask, state = (jnp.repeat(array, width, axis=0) for array in (memory, mask, state))
        vocabulary = model.target_vocabulary
        # Only what a finished hypothesis may say next: padding.
        silence = jnp.where(jnp.arange(vocabulary) == PAD, 0.0, -jnp.inf)
        never = jnp.isin(jnp.arange(vocabulary), jnp.array([PAD, BEGIN]))

        def select(array, parents):  # (B * K, ...) -> the chosen parents' entries
            beams = array.reshape(batch, width, *array.shape[1:])
            index = parents.reshape(batch, width, *(1,) * (beams.ndim - 2))
            return jnp.take_along_axis(beams, index, axis=1).reshape(array.shape)

        def going_on(carry):
            number, *_, finished = carry
            return (number < length) & ~finished.all()

        def step(carry):
            number, words, weights, state, score, finished = carry
            last = jnp.where(number == 0, BEGIN, jax.lax.dynamic_index_in_dim(words, number - 1, 1, keepdims=True))
            # A finished hypothesis ends with padding, which the decoder skips.
            logits, seen, state = apply(last, state, memory, mask, method="decode")
            logs = jax.nn.log_softmax(jnp.where(never, -jnp.inf, logits[:, 0]))
            logs = jnp.where(finished[:, None], silence, logs)
            total = (score[:, None] + logs).reshape(batch, width * vocabulary)
            score, best = jax.lax.top_k(total, width)
            parents, chosen = best // vocabulary, (best % vocabulary).reshape(-1)
            words, weights, state, seen, finished = (
                select(array, parents) for array in (words, weights, state, seen[:, 0], finished)
            )
            words = jax.lax.dynamic_update_index_in_dim(words, chosen, number, 1)
            weights = jax.lax.dynamic_update_index_in_dim(weights, seen, number, 1)
            return number + 1, words, weights, state, score.reshape(-1), finished | (chosen == END)

        rows = batch * width
        first = jnp.where(jnp.arange(rows) % width == 0, 0.0, -jnp.inf)  # the beams start equal: keep one of them
        carry = (
            0,
            jnp.full((rows, length), PAD, jnp.int32),
            jnp.zeros((rows, length, positions), memory.dtype),
            state,
            first,
            jnp.zeros(rows, bool),
        )
        _, words, weights, _, score, _ = jax.lax.while_loop(going_on, step, carry)
        spoken = jnp.maximum((words != PAD).sum(axis=1), 1)
        best = (score / spoken).reshape(batch, width).argmax(axis=1) + jnp.arange(batch) * width
        return words[best], weights[best]

    return jax.jit(search)


def predict(
    model, params, batches: Batches, examples: list[Example], vocabulary: Vocabulary, width: int
) -> tuple[list[list[str]], list[np.ndarray]]:
    """Words and attention (T, S) for every example, in their order.

    An unknown word is replaced by the source word that it attends to most.
    """
    words: list = [None] * len(examples)
    attention: list = [None] * len(examples)
    length = max(target for _, target in batches.shapes)
    search = compile_search(model, width, length)
    for batch in batches.in_order():
        numbers, weights = (np.asarray(array) for array in search(params, batch.arrays["source"]))
        for row, index in enumerate(batch.indices):
            if index < 0:
                continue
            source = examples[index].source[: weights.shape[2]]
            spoken = [number for number in numbers[row] if number not in (PAD, END)]
            attention[index] = weights[row, : len(spoken), : len(source)]
            words[index] = [
                source[attention[index][t].argmax()] if number == UNKNOWN else vocabulary.words[number]
                for t, number in enumerate(spoken)
            ]
    return words, attention
