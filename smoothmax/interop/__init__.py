"""Adapters for other frameworks: `smoothmax.interop.flax`, `.haiku` and `.equinox`.

Each imports its framework when it is imported itself, and nothing else of the library imports any of them.
"""
