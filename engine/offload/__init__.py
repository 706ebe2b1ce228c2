"""Where a model's weights rest, and how they reach the device in time. Shared by the engines.

Generic: knows tensors, files and byte buffers, not what is computed with them.
"""

from .reader import load_tensors
from .streamer import Conveyor, settle
from .units import Source, TensorSpec, Unit, make_units

__all__ = ["Conveyor", "Source", "TensorSpec", "Unit", "load_tensors", "make_units", "settle"]
