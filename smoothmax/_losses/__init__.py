"""Fenchel-Young losses: the loss that belongs to each regularizer, and its form for large vocabularies."""

from ._fenchel_young import fenchel_young_loss as fenchel_young_loss
from ._fenchel_young import fenchel_young_loss_with_integer_labels as fenchel_young_loss_with_integer_labels
from ._linear import linear_fenchel_young_loss as linear_fenchel_young_loss
