"""The networks: what is attended, and what is made of it. The attention is the library's own, with any mapping.

Shapes: B batch, S source length, T target length, H hidden size, V vocabulary size. Each network maps a batch to the
answers' logits (B, ..., classes) and to attention weights: a row of S weights for each word of the target (B, T, S), or
one row for the whole of a hypothesis (B, 1, S).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

import smoothmax as sm

from .data import END, LABELS, PAD
from .mappings import Mapping

WORDS = nn.initializers.normal(0.5)  # flax's default is much smaller, and learning starts later
# Nearly equal scores at first: a sparse mapping teaches only what it attends to.
NEARLY_EQUAL = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")


class Attention(nn.Module):
    """One head: each query (B, T, H) sees the keys (B, S, H) where `mask` (B, S) is True. Output and weights."""

    mapping: Mapping

    @nn.compact
    def __call__(self, query, key, value, mask):
        # Fixed hyper-parameters are numbers too, not constants of the program: one compilation serves all their values.
        numbers = {key: self.param(key, lambda _, start=start: start) for key, start in self.mapping.starts().items()}
        output, weights = sm.dot_product_attention(
            query[:, :, None],
            key[:, :, None],
            value[:, :, None],
            mask=mask[:, None, None],
            mapping=self.mapping.function(numbers),
            return_weights=True,
        )
        return output[:, :, 0], weights[:, 0]


def learned_values(params: dict, mapping: Mapping) -> dict[str, float]:
    """What training made of the hyper-parameters that `mapping` learns."""
    values = mapping.hyperparameters(params.get("attention", {}))
    return {key: float(values[key]) for key in mapping.learned}


# ---------------------------------------------------------------- entailment


class Decomposable(nn.Module):
    """Each word of either side attends to the other side, and is compared with what it found.

    Words have no order here, so all that the two sides know of each other comes through attention (Parikh et al.,
    "A Decomposable Attention Model for Natural Language Inference", 2016).
    """

    vocabulary: int
    hidden: int
    mapping: Mapping
    dropout: float = 0.0

    @nn.compact
    def __call__(self, batch, train: bool = False):
        # The same units for all words of a sentence: as good here, and far fewer random numbers.
        drop = nn.Dropout(self.dropout, broadcast_dims=(1,), deterministic=not train)

        def layer(name):
            dense = nn.Dense(self.hidden, name=name)
            return lambda inputs: drop(nn.relu(dense(inputs)))

        embed = nn.Embed(self.vocabulary, self.hidden, embedding_init=WORDS, name="embed")
        attend, ask = Attention(self.mapping, name="attention"), layer("ask")
        compare, sum_up = layer("compare"), layer("sum_up")

        masks = batch["source"] != PAD, batch["target"] != PAD
        premise, hypothesis = (drop(embed(batch[side])) for side in ("source", "target"))
        asking = ask(premise), ask(hypothesis)
        found_by_hypothesis, weights = attend(asking[1], asking[0], premise, masks[0])
        found_by_premise, _ = attend(asking[0], asking[1], hypothesis, masks[1])

        def conclude(words, found, mask):
            return (compare(jnp.concatenate([words, found, words * found], axis=-1)) * mask[..., None]).sum(axis=1)

        both = [
            conclude(premise, found_by_premise, masks[0]),
            conclude(hypothesis, found_by_hypothesis, masks[1]),
        ]
        summary = sum_up(jnp.concatenate(both, axis=-1)[:, None])[:, 0]
        return nn.Dense(len(LABELS), name="label")(summary), weights

    @staticmethod
    def answers(batch):
        """What the logits should say, and with which weight."""
        return batch["label"], batch["weight"]

    @staticmethod
    def rows(batch):
        """Which rows of attention (B, T) count."""
        return (batch["target"] != PAD) & (batch["weight"][:, None] > 0)


class SingleAttention(nn.Module):
    """The paper's model: the last state of a recurrent reader of the hypothesis attends over the premise, once."""

    vocabulary: int
    hidden: int
    mapping: Mapping
    dropout: float = 0.0

    @nn.compact
    def __call__(self, batch, train: bool = False):
        drop = nn.Dropout(self.dropout, broadcast_dims=(1,), deterministic=not train)
        embed = nn.Embed(self.vocabulary, self.hidden, embedding_init=WORDS, name="embed")
        mask, asked = batch["source"] != PAD, batch["target"] != PAD
        memory, state = Encoder(self.hidden, name="premise")(drop(embed(batch["source"])), mask)
        start = jnp.tanh(nn.Dense(self.hidden, name="bridge")(state))
        _, last = Recurrent(self.hidden, name="hypothesis")(drop(embed(batch["target"])), asked, start)
        asking = nn.Dense(self.hidden, use_bias=False, kernel_init=NEARLY_EQUAL, name="score")(last[:, None])
        found, weights = Attention(self.mapping, name="attention")(asking, memory, memory, mask)
        found = found[:, 0]
        features = jnp.concatenate([found, last, found * last, jnp.abs(found - last)], axis=-1)
        features = nn.relu(nn.Dense(self.hidden, name="compare")(features))
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
        return nn.Dense(len(LABELS), name="label")(features), weights

    answers = staticmethod(Decomposable.answers)

    @staticmethod
    def rows(batch):
        return batch["weight"][:, None] > 0


# ---------------------------------------------------------------- recurrent parts


class Recurrent(nn.Module):
    """A gated recurrent unit over (B, T, features); padding leaves the state as it was.

    The projection of the inputs is one product for all positions; only the recurrent product is
    inside the scan.
    """

    size: int
    reverse: bool = False

    @nn.compact
    def __call__(self, inputs, mask, initial=None):
        gates = nn.Dense(3 * self.size, name="input")(inputs)
        kernel = self.param("recurrent", nn.initializers.orthogonal(), (self.size, 3 * self.size), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.size,), jnp.float32)
        if initial is None:
            initial = jnp.zeros((inputs.shape[0], self.size), jnp.float32)

        def cell(state, position):
            gates, present = position
            inner = state @ kernel
            reset, update = jnp.split(jax.nn.sigmoid(gates[:, : 2 * self.size] + inner[:, : 2 * self.size]), 2, axis=-1)
            fresh = jnp.tanh(gates[:, 2 * self.size :] + reset * (inner[:, 2 * self.size :] + bias[None]))
            state = jnp.where(present[:, None], fresh + update * (state - fresh), state)
            return state, state

        positions = jnp.swapaxes(gates, 0, 1), jnp.swapaxes(mask, 0, 1)
        final, states = jax.lax.scan(cell, initial, positions, reverse=self.reverse)
        return jnp.swapaxes(states, 0, 1), final


class Encoder(nn.Module):
    """Both directions over the embedded source: memory (B, S, H), mask (B, S), final state (B, H)."""

    hidden: int

    @nn.compact
    def __call__(self, embedded, mask):
        forward, last = Recurrent(self.hidden // 2, name="forward")(embedded, mask)
        backward, first = Recurrent(self.hidden // 2, reverse=True, name="backward")(embedded, mask)
        # The words themselves stay in the memory, so that attention to a word means that word.
        return embedded + jnp.concatenate([forward, backward], axis=-1), jnp.concatenate([last, first], axis=-1)


# ---------------------------------------------------------------- translation and summarization


class Translator(nn.Module):
    """Translation and summarization: a decoder with global attention over the source."""

    source_vocabulary: int
    target_vocabulary: int
    hidden: int
    mapping: Mapping
    dropout: float = 0.0
    shared: bool = False  # one embedding for both sides

    def setup(self):
        self.embed_source = nn.Embed(self.source_vocabulary, self.hidden, embedding_init=WORDS)
        self.embed_target = (
            self.embed_source if self.shared else nn.Embed(self.target_vocabulary, self.hidden, embedding_init=WORDS)
        )
        self.encoder = Encoder(self.hidden)
        self.bridge = nn.Dense(self.hidden)
        self.decoder = Recurrent(self.hidden)
        self.score = nn.Dense(self.hidden, use_bias=False, kernel_init=NEARLY_EQUAL)
        self.attention = Attention(self.mapping)
        self.combine = nn.Dense(self.hidden)
        self.output = nn.Dense(self.target_vocabulary)
        self.drop = nn.Dropout(self.dropout, broadcast_dims=(1,))

    def encode(self, source, train: bool = False):
        mask = source != PAD
        memory, state = self.encoder(self.drop(self.embed_source(source), deterministic=not train), mask)
        return memory, mask, jnp.tanh(self.bridge(state))

    def decode(self, words, state, memory, mask, train: bool = False):
        """Logits (B, T, V) after each of `words` (B, T), weights (B, T, S) and the last state (B, H)."""
        embedded = self.drop(self.embed_target(words), deterministic=not train)
        states, last = self.decoder(embedded, words != PAD, state)
        found, weights = self.attention(self.score(states), memory, memory, mask)  # Luong's general score
        output = jnp.tanh(self.combine(jnp.concatenate([found, states], axis=-1)))
        return self.output(self.drop(output, deterministic=not train)), weights, last

    def __call__(self, batch, train: bool = False):
        memory, mask, state = self.encode(batch["source"], train)
        logits, weights, _ = self.decode(batch["target"][:, :-1], state, memory, mask, train)
        return logits, weights

    @staticmethod
    def answers(batch):
        answers = batch["target"][:, 1:]
        return answers, jnp.where(answers == PAD, 0.0, batch["weight"][:, None])

    @staticmethod
    def rows(batch):
        answers = batch["target"][:, 1:]
        return (answers != PAD) & (answers != END) & (batch["weight"][:, None] > 0)
