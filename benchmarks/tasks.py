"""Networks in use: what each does, on data like those that it was trained on, or unlike them.

Every task has three disjoint sets: one to calibrate, one to choose by, one to report on, on which
nothing is chosen. CIFAR-10 calibrates and chooses on `train`, which the networks were trained on,
and reports on `test_a`, which they were not; of the ImageNet pack even rows calibrate and choose,
odd rows report; MiniLM has splits of its own. `of_folder` takes a network and images of one's own.
"""

import copy
import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import nn

import common
from flexrel.cli import demo

FEW = (0, 1, 2)  # airplane, automobile, bird
NOISE, CONTRAST = 12.0, 0.5  # of corrupted images: standard deviation of 255; share that is left
CIFAR = ("as trained", "3 classes", "corrupted")
DEPLOYMENTS = {  # the first is like the data that the network was trained on
    "resnet20": CIFAR,
    "resnet56": CIFAR,
    "vgg16": CIFAR,
    "efficientnet_lite0": ("as trained", "corrupted"),
    "mobilenetv2": ("as trained",),
    "minilm": ("STS-B", "SST-2"),
}
NETWORKS = ("resnet56", "vgg16", "efficientnet_lite0", "minilm")  # of the paper's experiment
PLANNED = [(network, use) for network in NETWORKS for use in DEPLOYMENTS[network]]
CALIBRATE, CHOOSE, BATCH = 512, 300, 50
TEST = {"resnet20": 2000, "resnet56": 2000, "vgg16": 1000, "efficientnet_lite0": 500}
TEST |= {"minilm": 1000, "mobilenetv2": 500}
BATCHES = {"efficientnet_lite0": 8, "mobilenetv2": 8}  # larger ones leave the processor's caches
OF_IMAGENET = (350, 150)  # of its 500 even rows: to calibrate, to choose by
DRAWN = 1000  # times that samples are drawn again, for standard errors
SHORTER, SIDE = 256, 224  # of images of a folder: resized, then cut to the middle
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = {".jpeg", ".jpg", ".png", ".webp"}
OF_FOLDER = (512, 1000)  # images: to calibrate, to choose by
FEW_OF_FOLDER = 0.01  # of the classes: what "few classes" has in use


class Hits:
    """Judges a classifier: for each input whether its largest score is at the label."""

    unit = "top-1"
    outputs = "classes"

    def __init__(self, batches):
        self.batches = batches

    def __call__(self, network):
        """Return bool `[samples]`."""
        network = copy.deepcopy(network).to(memory_format=torch.channels_last).eval()
        with torch.inference_mode():
            found = [network(inputs).argmax(1) == labels for inputs, labels in self.batches]
        return torch.cat(found).cpu().numpy()

    @staticmethod
    def score(outcomes):
        """Return what share is right."""
        return float(np.mean(outcomes))

    def constant(self):
        """Return the score of the answer that is right most often, given to all."""
        labels = torch.cat([labels for _, labels in self.batches])
        return float(labels.bincount().max()) / len(labels)


class Ranks:
    """Judges an encoder: how it ranks pairs of sentences by likeness, against what people said."""

    unit = "Spearman"
    outputs = "values"

    def __init__(self, pairs, said):
        self.pairs, self.said = pairs, said

    def __call__(self, network):
        """Return `[pairs, 2]`: cosine similarities, and what people said."""
        with torch.inference_mode():
            found = torch.cat([(network(a) * network(b)).sum(1) for a, b in self.pairs])
        return np.stack([found.cpu().double().numpy(), self.said], axis=1)

    @staticmethod
    def score(outcomes):
        """Return the rank correlation; 0 where all similarities are the same."""
        found = float(spearmanr(outcomes[:, 0], outcomes[:, 1])[0])
        return found if np.isfinite(found) else 0.0

    @staticmethod
    def constant():
        """Return the score of likeness that is the same for all pairs."""
        return 0.0


def compared(judge, dense, outcomes):
    """Return the score of outcomes and how far it is below that of others, with standard errors.

    Both by samples drawn again, the same of both.
    """
    rng, count = np.random.default_rng(0), len(dense)
    drawn = (rng.integers(0, count, count) for _ in range(DRAWN))
    pairs = np.array([(judge.score(outcomes[rows]), judge.score(dense[rows])) for rows in drawn])
    return {
        "score": judge.score(outcomes),
        "error": float(pairs[:, 0].std()),
        "lost": judge.score(dense) - judge.score(outcomes),
        "lost_error": float((pairs[:, 1] - pairs[:, 0]).std()),
    }


@dataclass(frozen=True, eq=False)
class Task:
    """One network in one deployment, with one draw of calibration data."""

    network: str
    deployment: str
    draw: int
    model: nn.Module
    calibration: Sequence  # of (inputs, labels or None): labels are for methods that need them
    choose: Hits | Ranks
    test: Hits | Ranks

    @property
    def inputs(self):
        """The calibration data without their labels."""
        return [inputs for inputs, _ in self.calibration]


def task(network, deployment, draw, *, device="cpu"):
    """Return the task of that name, of the data packs; as many inputs report as TEST says."""
    packs, test = common.data_packs(), TEST[network]
    if network == "minilm":
        made = _pairs if deployment == "STS-B" else _reviews
        return made(packs, deployment, draw, test, device)
    place = functools.partial(_placed, packs, network, device)
    rng = np.random.default_rng(draw)
    if network in BATCHES:  # those of ImageNet
        images, labels = packs.imagenet1k()
        known, seen = (images[::2], labels[::2]), (images[1::2], labels[1::2])
        calibrate, choose = OF_IMAGENET
    else:
        known, seen = packs.cifar10("train"), packs.cifar10("test_a")
        calibrate, choose = CALIBRATE, CHOOSE
    known, seen = _deployed(*known, deployment), _deployed(*seen, deployment)
    order = rng.permutation(len(known[1]))[: calibrate + choose]
    fit, chosen = order[:calibrate], order[calibrate:]
    return Task(
        network,
        deployment,
        draw,
        packs.network(network).to(device=device, memory_format=torch.channels_last),
        place(known[0][fit], known[1][fit]),
        Hits(place(known[0][chosen], known[1][chosen])),
        Hits(place(seen[0][:test], seen[1][:test])),
    )


def _deployed(images, labels, deployment):
    """Return the images as they are, those of a few classes, or all of them corrupted."""
    if deployment == "3 classes":
        mine = np.isin(labels, FEW)
        return images[mine], labels[mine]
    if deployment == "corrupted":
        return corrupted(images), labels
    return images, labels


def corrupted(images):
    """Return every second image with noise, the others with little contrast; always the same."""
    made = images.astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(made[::2].shape, np.float32)
    made[::2] += NOISE * noise
    middle = made[1::2].mean(axis=(1, 2, 3), keepdims=True)
    made[1::2] = middle + CONTRAST * (made[1::2] - middle)
    return made.round().clip(0, 255).astype(np.uint8)


def _placed(packs, network, device, images, labels):
    inputs = packs.normalise(network, images).contiguous(memory_format=torch.channels_last)
    size = BATCHES.get(network, BATCH)
    pairs = zip(inputs.split(size), torch.from_numpy(labels).split(size), strict=True)
    return [(x.to(device), y.to(device)) for x, y in pairs]


def digits(draw=0):
    """Return a small network trained on the spot; its data come with scikit-learn."""
    data = demo.digits()
    pairs = [(x, y) for batch in data.evaluation for x, y in zip(*batch, strict=True)]
    order = np.random.default_rng(draw).permutation(len(pairs)).tolist()
    found = [
        [torch.stack(side) for side in zip(*(pairs[at] for at in part), strict=True)]
        for part in (order[:200], order[200:])
    ]
    labels = data.train_y.split(len(data.calibration[0]))
    calibration = list(zip(data.calibration, labels, strict=False))  # of the first alone
    judges = (Hits([tuple(part)]) for part in found)
    return Task("digits", "as trained", draw, demo.train(data), calibration, *judges)


# --- sentences ------------------------------------------------------------------------------


class Probe(nn.Module):
    """A sentence encoder with a linear classifier behind it."""

    def __init__(self, encoder, weight, bias):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        self.head.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, ids):
        """Ids `[sentences, columns]` to class scores `[sentences, 2]`."""
        return self.head(self.encoder(ids))


def _pairs(packs, deployment, draw, test, device):
    pack = _minilm(packs)
    dev = np.concatenate([pack["stsb_dev_a"][CHOOSE:], pack["stsb_dev_b"][CHOOSE:]])
    picked = np.random.default_rng(draw).permutation(len(dev))[:CALIBRATE]

    def ranked(split, count):
        ids = (_batches(pack[f"stsb_{split}_{side}"][:count], device) for side in "ab")
        said = pack[f"stsb_{split}_y"][:count].astype(np.float64)
        return Ranks(list(zip(*ids, strict=True)), said)

    calibration = [(x, None) for x in _batches(dev[picked], device)]
    model = packs.minilm().to(device)
    choose, reported = ranked("dev", CHOOSE), ranked("test", test)
    return Task("minilm", deployment, draw, model, calibration, choose, reported)


def _reviews(packs, deployment, draw, test, device):
    pack = _minilm(packs)
    head = load_file(Path(packs.__file__).parent / "minilm" / "sst2_head.safetensors")
    model = Probe(packs.minilm(), head["weight"].float(), head["bias"].float()).eval().to(device)
    order = np.random.default_rng(draw).permutation(len(pack["sst2_train_y"]))

    def labelled(split, rows):
        labels = torch.from_numpy(pack[f"sst2_{split}_y"][rows].astype(np.int64)).to(device)
        ids = _batches(pack[f"sst2_{split}_ids"][rows], device)
        return list(zip(ids, labels.split(BATCH), strict=True))

    calibration = labelled("train", order[:CALIBRATE])
    choose = Hits(labelled("train", order[CALIBRATE : CALIBRATE + CHOOSE]))
    reported = Hits(labelled("test", slice(test)))
    return Task("minilm", deployment, draw, model, calibration, choose, reported)


def _minilm(packs):
    return np.load(Path(packs.__file__).parent / "minilm" / "data.npz")


def _batches(ids, device):
    """Return batches of token ids without the columns that are padding in all of their rows."""
    found = torch.from_numpy(ids.astype(np.int64)).split(BATCH)
    return [x[:, : int((x != 0).sum(1).max())].to(device) for x in found]


# --- images of one's own ----------------------------------------------------------------------


class Images:
    """Batches of images and labels, read from files each time they are gone through."""

    def __init__(self, files, device):
        self.files, self.device = files, device

    def __iter__(self):
        for at in range(0, len(self.files), BATCH):
            chunk = self.files[at : at + BATCH]
            inputs = torch.stack([read(path) for path, _ in chunk])
            labels = torch.tensor([label for _, label in chunk])
            yield (
                inputs.to(device=self.device, memory_format=torch.channels_last),
                labels.to(self.device),
            )


def read(path):
    """Return the image as networks of torchvision take it: float32 `[3, 224, 224]`."""
    from PIL import Image  # noqa: PLC0415 - only folders need it

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


def network_of(library, model, *, trained):
    """Return the network of that name of torchvision or timm."""
    common.declare_operators()
    if library == "torchvision":
        models = importlib.import_module("torchvision.models")
        return models.get_model(model, weights="DEFAULT" if trained else None).eval()
    if library == "timm":
        return importlib.import_module("timm").create_model(model, pretrained=trained).eval()
    raise SystemExit(f"{library!r} is not known; give torchvision:NAME or timm:NAME")


def of_folder(name, folder, draw, images, device, *, trained=True):
    """Yield the task of `torchvision:NAME` or `timm:NAME` with all classes in use, and with few.

    The folder has one sub-folder of images a class, in the order of their names, as ImageNet's
    `val`. It is divided: images to calibrate, then to choose by; at most `images` others report.
    """
    files, classes = listed(folder)
    order = np.random.default_rng(0).permutation(len(files))  # what reports is never drawn again
    few = range(max(2, round(FEW_OF_FOLDER * classes)))
    for deployment, wanted in (("as trained", range(classes)), (f"{len(few)} classes", few)):
        mine = [files[at] for at in order if files[at][1] in wanted]
        report = min(images, len(mine) // 2)
        reported, known = mine[:report], mine[report:]
        known = [known[at] for at in np.random.default_rng(draw).permutation(len(known))]
        most, choose = OF_FOLDER
        calibrate = min(most, max(1, round(most / (most + choose) * len(known))))
        library, _, named = name.partition(":")
        model = network_of(library, named, trained=trained)
        yield Task(
            name,
            deployment,
            draw,
            model.to(device=device, memory_format=torch.channels_last),
            list(Images(known[:calibrate], device)),
            Hits(Images(known[calibrate:][:choose], device)),
            Hits(Images(reported, device)),
        )
