"""Networks to packed files and back; the format itself is flexrel_edge's."""

from flexrel.pack.read import fit, load
from flexrel.pack.write import Written, encode, names_of, pack, round_

__all__ = ["Written", "encode", "fit", "load", "names_of", "pack", "round_"]
