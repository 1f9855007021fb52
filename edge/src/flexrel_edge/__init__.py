"""Read, verify and write networks packed by FlexRel, with numpy and one codec, without torch.

weights = flexrel_edge.read("model.flexrel")   # {name: numpy array}
"""

from flexrel_edge.errors import FlexrelError, PackError
from flexrel_edge.fetch import Patience, Pulled, pull
from flexrel_edge.files import diff, inspect, patch, read, sign, write
from flexrel_edge.format import Contents, Packed, decode, encode
from flexrel_edge.moments import Moments
from flexrel_edge.observe import Observer, read_moments
from flexrel_edge.records import Bfloat16, Entry
from flexrel_edge.send import send
from flexrel_edge.session import session
from flexrel_edge.versions import rollback

__version__ = "0.1.0"

__all__ = [
    "Bfloat16",
    "Contents",
    "Entry",
    "FlexrelError",
    "Moments",
    "Observer",
    "PackError",
    "Packed",
    "Patience",
    "Pulled",
    "__version__",
    "decode",
    "diff",
    "encode",
    "inspect",
    "patch",
    "pull",
    "read",
    "read_moments",
    "rollback",
    "send",
    "session",
    "sign",
    "write",
]
