"""A value pickled in one go, for a remote call."""

import pickle
from typing import Any


class Pickled:
    """Arrives as the value itself. Ray's own pickler asks Python about every object of an argument; this one is a single object
    to it."""

    def __init__(self, value: Any):
        """`value` is of classes that can be imported."""
        self._data = pickle.dumps(value, protocol=5)

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)
