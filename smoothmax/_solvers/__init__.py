"""The numerics, on slices `(*batch, d)` in float32 or float64; they know nothing of regularizers."""

from ._capped import capped_weights as capped_weights
from ._chain import chain_prox as chain_prox
from ._chain import isotonic as isotonic
from ._chain import segment_mean as segment_mean
from ._conjugate_gradients import conjugate_gradients as conjugate_gradients
from ._conjugate_gradients import hessian_product as hessian_product
from ._interior_point import interior_point as interior_point
from ._permutahedron import group_mean as group_mean
from ._permutahedron import project_permutahedron as project_permutahedron
from ._power import on_support as on_support
from ._power import support_power as support_power
from ._products import diagonal_product as diagonal_product
from ._products import threshold_product as threshold_product
from ._separable import least as least
from ._separable import separable_inverse as separable_inverse
from ._separable import separable_weights as separable_weights
from ._sorting import put_back as put_back
from ._sorting import sort_ranked as sort_ranked
from ._sorting import sorted_prox as sorted_prox
from ._sorting import take as take
from ._threshold import p_norm_weights as p_norm_weights
from ._threshold import softmax_weights as softmax_weights
from ._threshold import sparsemax_weights as sparsemax_weights
from ._threshold import tsallis_weights as tsallis_weights
from ._values import ranked as ranked
from ._values import variation as variation
