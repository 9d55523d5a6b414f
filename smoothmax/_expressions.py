"""The regularizers that the named mappings and their values are short for."""

from __future__ import annotations

from ._parameters import Parameter
from ._regularizers import Oscar, Regularizer, Shannon, SquaredL2, SquaredPNorm, TotalVariation, Tsallis


def softmax(gamma: Parameter) -> Regularizer:
    return gamma * Shannon()


def sparsemax(gamma: Parameter) -> Regularizer:
    return gamma * SquaredL2()


def entmax(alpha: Parameter, gamma: Parameter) -> Regularizer:
    return gamma * Tsallis(alpha)


def pnormmax(p: Parameter, gamma: Parameter) -> Regularizer:
    return gamma * SquaredPNorm(p)


def fusedmax(lam: Parameter, gamma: Parameter) -> Regularizer:
    return gamma * (SquaredL2() + lam * TotalVariation())


def oscarmax(lam: Parameter, gamma: Parameter) -> Regularizer:
    return gamma * (SquaredL2() + lam * Oscar())
