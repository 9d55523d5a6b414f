"""Dot-product attention over any gradient mapping, whole or in blocks of queries.

`_call.py` is what users call, with its checks; `_visibility.py` says which keys a query may see; `_core.py` turns
queries, keys and values into weights and an output; `_blocks.py` does so a block of queries at a time.
"""

from ._call import attend_batched as attend_batched
from ._call import dot_product_attention as dot_product_attention
from ._visibility import Visibility as Visibility
