"""Where a model's weights rest, and how they reach the device in time. Shared by the engines.

Generic: knows tensors, files and byte buffers, not what is computed with them.
"""

from .once import OnceUnits
from .reader import load_tensors
from .streamer import ExpertUnits, WeightStreamer, place_weights
from .units import Finish, Joined, Source, Unit, make_units, weigh

__all__ = [
    "ExpertUnits",
    "Finish",
    "Joined",
    "OnceUnits",
    "Source",
    "Unit",
    "WeightStreamer",
    "load_tensors",
    "make_units",
    "place_weights",
    "weigh",
]
