"""Where a model's weights rest, and how they reach the device in time. Shared by the engines.

Generic: knows tensors, files and byte buffers, not what is computed with them.
"""

from .reader import load_tensors
from .streamer import Conveyor, settle
from .units import Source, Unit, make_units, weigh

__all__ = ["Conveyor", "Source", "Unit", "load_tensors", "make_units", "settle", "weigh"]
