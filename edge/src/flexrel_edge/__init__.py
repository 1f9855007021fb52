"""Read, verify and write networks packed by FlexRel, with numpy and one codec, without torch.

weights = flexrel_edge.read("model.flexrel")   # {name: numpy array}
"""

from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.files import inspect, read, write
from flexrel_edge.format import decode, encode
from flexrel_edge.records import Bfloat16, Contents, Entry, Packed

__version__ = "0.1.0"

__all__ = [
    "Bfloat16",
    "Contents",
    "Entry",
    "FlexrelError",
    "PackError",
    "Packed",
    "__version__",
    "decode",
    "encode",
    "inspect",
    "read",
    "write",
]
