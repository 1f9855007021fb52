"""A network and a folder of images of one's own, as tasks: ImageNet, for those who have it.

    imagenet/val/n01440764/....JPEG     one sub-folder a class, classes in the order of their names

Images are read when they are needed: resized to 256 on the shorter side, of which the middle 224 by
224 are taken, as the networks of torchvision were evaluated.
"""

import importlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import common
import tasks

SHORTER, SIDE = 256, 224
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = {".jpeg", ".jpg", ".png", ".webp"}
CALIBRATE, CHOOSE = 512, 1000  # images
FEW = 0.01  # of the classes: what "few classes" has in use


class Images:
    """Batches of images and labels, read from files each time they are gone through."""

    def __init__(self, files, device):
        self.files, self.device = files, device

    def __iter__(self):
        for at in range(0, len(self.files), tasks.BATCH):
            chunk = self.files[at : at + tasks.BATCH]
            inputs = torch.stack([read(path) for path, _ in chunk])
            labels = torch.tensor([label for _, label in chunk])
            yield (
                inputs.to(device=self.device, memory_format=torch.channels_last),
                labels.to(self.device),
            )


def read(path):
    """Return the image as networks of torchvision take it: float32 `[3, 224, 224]`."""
    with Image.open(path) as opened:
        shorter = min(opened.size)
        size = [round(side * SHORTER / shorter) for side in opened.size]
        image = opened.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        left, top = ((side - SIDE) // 2 for side in size)
        pixels = np.asarray(image.crop((left, top, left + SIDE, top + SIDE)), np.float32) / 255
    return torch.from_numpy((pixels - np.float32(MEAN)) / np.float32(SPREAD)).movedim(2, 0)


def listed(folder):
    """Return (path, class) of every image, in the order of their names."""
    classes = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    files = [
        (path, label)
        for label, place in enumerate(classes)
        for path in sorted(place.iterdir())
        if path.suffix.lower() in KINDS
    ]
    if not files:
        raise SystemExit(f"{folder}: no images; it needs one sub-folder a class, with .jpg or .png")
    return files, len(classes)


def network(name, *, trained=True):
    """Return the network that `torchvision:NAME` or `timm:NAME` names."""
    library, _, model = name.partition(":")
    common.declare_operators()
    if library == "torchvision":
        models = importlib.import_module("torchvision.models")
        return models.get_model(model, weights="DEFAULT" if trained else None).eval()
    if library == "timm":
        return importlib.import_module("timm").create_model(model, pretrained=trained).eval()
    raise SystemExit(f"{name!r} is not known; give torchvision:NAME or timm:NAME")


def all_tasks(name, folder, draw, images, device, *, trained=True):
    """Yield the task with all classes in use, and with few.

    The folder is divided: images to calibrate, then to choose by; at most `images` others report.
    """
    files, classes = listed(folder)
    order = np.random.default_rng(0).permutation(len(files))  # what reports is never drawn again
    few = range(max(2, round(FEW * classes)))
    for deployment, wanted in (("as trained", range(classes)), (f"{len(few)} classes", few)):
        mine = [files[at] for at in order if files[at][1] in wanted]
        report = min(images, len(mine) // 2)
        reported, known = mine[:report], mine[report:]
        known = [known[at] for at in np.random.default_rng(draw).permutation(len(known))]
        share = CALIBRATE / (CALIBRATE + CHOOSE)
        calibrate = min(CALIBRATE, max(1, round(share * len(known))))
        yield tasks.Task(
            name,
            deployment,
            draw,
            network(name, trained=trained).to(device=device, memory_format=torch.channels_last),
            list(Images(known[:calibrate], device)),
            tasks.Hits(Images(known[calibrate:][:CHOOSE], device)),
            tasks.Hits(Images(reported, device)),
        )
