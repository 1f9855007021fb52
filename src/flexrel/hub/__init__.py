"""A pruned network in a folder, as Hugging Face's hub has them, and back with class and widths.

flexrel.hub.save(result, "pruned-bert", processing=tokenizer)
model = flexrel.hub.load("pruned-bert")

`save_pretrained` alone writes weights that `from_pretrained` refuses: layers are narrower than the
configuration says.
"""

from flexrel.hub.folder import load_from_folder as load
from flexrel.hub.folder import save_to_folder as save

__all__ = ["load", "save"]
