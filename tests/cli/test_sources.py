"""MODEL and DATA: every form is read as whoever made it would, or says what to write."""

import json
import sys
import warnings
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from torch import nn

from flexrel.cli import factories, images, main
from flexrel.cli.factories import arguments
from flexrel.cli.images import (
    Preparation,
    image_folder,
    image_notes,
    kept_in_memory,
    prepared,
    read_image,
)
from flexrel.cli.models import read_model
from flexrel.cli.options import parse_class_names
from flexrel.cli.paths import existing, model_there
from flexrel.cli.sources import read_data
from flexrel.cli.weights import read_weights
from flexrel.core.evaluate import Accuracy
from flexrel.core.measurement import silent
from flexrel.errors import PackError, UsageError
from oracles import needs

OWN = """
from functools import partial
from torch import nn
from torch.utils.data import TensorDataset
import torch

def make(width=4, name="relu", deep=False):
    layers = [nn.Linear(3, width), nn.ReLU() if name == "relu" else nn.Tanh()]
    return nn.Sequential(*layers, *[nn.Linear(width, width)] * deep)

class Net(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.layer = nn.Linear(3, width)

network = make()
bound = partial(make, width=9)
batches = [torch.zeros(2, 3)]
samples = TensorDataset(torch.zeros(70, 3))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_words.py").write_text(OWN)
    yield "own_words"
    sys.modules.pop("own_words", None)


def model(spec, weights=None):
    return read_model(spec, weights, 0, silent)


def widths(network):
    return [m.out_features for m in network.modules() if isinstance(m, nn.Linear)]


# --- factories ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("own_words.py:make", [4]),
        ("own_words.py:make?width=7", [7]),
        ("own_words.py:make?width=7&deep=true&name=tanh", [7, 7]),
        ("own_words.py:Net?width=5", [5]),
        ("own_words.py:network", [4]),
        ("own_words.py:bound", [9]),
        ("own_words:make", [4]),
        ("own_words.make?width=6", [6]),
    ],
)
def test_a_network_comes_from_a_factory_a_class_or_is_there(own, spec, found):
    assert widths(model(spec).network) == found


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("own_words.py", "write own_words.py:NAME"),
        ("own_words.py:mak", "no function 'mak'; it has make, Net"),
        ("own_words.py:make?wide=3", "unexpected keyword argument 'wide'"),
        ("own_words.py:batches", "returned a list, not a torch.nn.Module"),
        ("nonsense", "torchvision:NAME, timm:NAME, hf:FOLDER"),
        ("no.such.thing", "torchvision:NAME, timm:NAME, hf:FOLDER"),
    ],
)
def test_a_model_that_is_none_says_what_to_give(own, spec, says):
    with pytest.raises(UsageError) as refused:
        model(spec)

    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("net.onnx", "the network of torch that it is made of"),
        ("weights.pth", "--weights weights.pth"),
        ("weights.safetensors", "give that as MODEL"),
        ("images.npz", "holds data, which --calibration and --evaluation take"),
        ("nowhere.pt2", "nowhere.pt2: no such file or folder"),
        ("nowhere.py:make?width=3", "nowhere.py: no such file or folder"),
    ],
)
def test_a_file_that_is_no_model_or_not_there_is_told_before_torch_is_loaded(spec, says):
    with pytest.raises(typer.BadParameter) as refused:
        model_there(spec)

    assert says in str(refused.value.message)


@pytest.mark.parametrize("spec", ["nowhere/images", "./images", "data.npz", "own.py:batches"])
def test_data_that_are_not_there_are_told_before_torch_is_loaded(own, spec):
    with pytest.raises(typer.BadParameter, match="no such file or folder"):
        existing(spec)


@pytest.mark.parametrize("spec", [None, "own_words.py:batches", "own_words:batches", "demo:digits"])
def test_data_that_may_be_there_pass(own, spec):
    assert existing(spec) == spec


def test_arguments_are_numbers_words_and_texts():
    assert arguments("a=3&b=0.5&c=true&d=none&e=resnet18&f=(1,2)") == {
        "a": 3,
        "b": 0.5,
        "c": True,
        "d": None,
        "e": "resnet18",
        "f": (1, 2),
    }


def test_torchscript_as_the_model_is_told_to_be_weights(tmp_path):
    path = tmp_path / "net.pt"
    with warnings.catch_warnings(action="ignore"):  # torch is about to drop it
        torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)), path)

    with pytest.raises(typer.BadParameter, match=r"TorchScript, .* as --weights, and the arch"):
        model_there(str(path))
    with pytest.raises(UsageError, match=r"TorchScript, .*torch\.jit\.load\(\.\.\.\)\.state_dict"):
        read_weights(path, nn.Linear(3, 2))


def test_a_program_is_a_model(tmp_path):
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    samples = torch.export.Dim("samples")
    program = torch.export.export(network, (torch.zeros(4, 3),), dynamic_shapes=({0: samples},))
    torch.export.save(program, tmp_path / "net.pt2")
    x = torch.randn(5, 3)

    assert torch.equal(model(str(tmp_path / "net.pt2")).network(x), network(x))


# --- libraries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchvision", "timm", "transformers"])
def test_a_library_that_is_not_installed_is_named_with_how_to_install_it(name, monkeypatch):
    for known in (name, f"{name}.models"):  # another test may have loaded it
        monkeypatch.setitem(sys.modules, known, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    spec = {"transformers": "hf"}.get(name, name)

    with pytest.raises(UsageError, match=f"{spec}:x.* needs {name}: pip install {name}"):
        model(f"{spec}:x?weights=DEFAULT&pretrained=true")


def test_a_library_that_can_not_be_loaded_says_why_and_what_mends_it(monkeypatch, tmp_path):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(UsageError) as refused:
        model("torchvision:resnet18?weights=DEFAULT")

    assert "is installed but can't be loaded: RuntimeError: operator nms" in str(refused.value)
    assert "pip install --force-reinstall torch" in str(refused.value)


@pytest.mark.parametrize("spec", ["strange.make", "mine.py:make", "mine.py:late"])
def test_code_that_a_broken_torchvision_stops_says_what_mends_it(monkeypatch, tmp_path, spec):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('no operator')")
    (tmp_path / "strange.py").write_text("import torchvision")  # as timm does
    (tmp_path / "mine.py").write_text("def late():\n    import strange\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(factories, "versions", lambda *names: dict.fromkeys(names, "2.13.0+cpu"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    if spec.endswith("py:make"):
        (tmp_path / "mine.py").write_text("import strange")

    with pytest.raises(UsageError) as refused:
        model(spec)

    said = str(refused.value)
    assert "RuntimeError: no operator" in said
    assert "pip install --force-reinstall torch torchvision --index-url" in said
    assert said.count("/whl/cpu") == 1


def test_a_class_that_transformers_can_not_load_is_told(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    broken = ModuleType("transformers")
    broken.AutoConfig = SimpleNamespace(
        from_pretrained=lambda *_, **__: SimpleNamespace(architectures=["Bert"])
    )

    def of_module(name):
        raise ModuleNotFoundError(f"could not import {name}")

    broken.__getattr__ = of_module
    monkeypatch.setitem(sys.modules, "transformers", broken)

    with pytest.raises(UsageError, match="its class Bert can't be loaded: ModuleNotFoundError"):
        model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("code", "says"),
    [("import cv2_", "PYTHONPATH=FOLDER"), ("import skimage", "pip install scikit-image")],
)
def test_code_that_lacks_a_module_says_how_it_is_found(monkeypatch, tmp_path, code, says):
    monkeypatch.setitem(sys.modules, "skimage", None)  # as if it were not there
    (tmp_path / "lacks.py").write_text(code)

    with pytest.raises(UsageError, match=says):
        model(f"{tmp_path}/lacks.py:make")


CPU = "--index-url https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize(
    ("torch_build", "package", "command"),
    [
        ("2.13.0+cpu", "torchvision", f"pip install torchvision {CPU}"),
        ("2.13.0", "torchvision", "pip install torchvision"),
        ("2.13.0+cpu", "sklearn", "pip install scikit-learn"),
        ("2.13.0+cpu", "timm", f"pip install torchvision {CPU} && pip install timm"),
    ],
)
def test_what_is_installed_beside_torch_leaves_its_build(
    monkeypatch, torch_build, package, command
):
    found = {"torch": torch_build, "torchvision": None}
    monkeypatch.setattr(factories, "versions", lambda *names: {n: found[n] for n in names})

    assert factories.installing(package) == command


def test_a_network_of_timm_says_of_its_images_whoever_makes_it(monkeypatch):
    told = {
        "input_size": (3, 160, 160), "crop_pct": 0.8, "mean": (0.5,) * 3, "std": (0.25,) * 3,
        "interpolation": "bicubic", "crop_mode": "center",
    }  # fmt: skip
    timm, data = ModuleType("timm"), ModuleType("timm.data")
    data.resolve_model_data_config = lambda network: network.pretrained_cfg
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.data", data)

    def create_model(model_name):
        network = nn.Conv2d(3, 4, 3)
        network.pretrained_cfg = told
        return network

    timm.create_model = create_model

    found = model("timm.create_model?model_name=x").preparation

    assert found == Preparation(160, (0.5,) * 3, (0.25,) * 3, 200, "bicubic")
    with pytest.raises(UsageError, match=r"'model_name'; it needs model_name.*\?model_name=\.\.\."):
        model("timm.create_model?name=x")


def test_torchvision_is_asked_for_its_network_and_how_its_images_are_prepared(tmp_path):
    vision = needs("torchvision.models")
    weights = tmp_path / "w.pth"
    state = vision.resnet18(num_classes=7).state_dict()
    torch.save(state, weights)

    found = model("torchvision:resnet18?num_classes=7", weights)

    assert all(torch.equal(found.network.state_dict()[name], state[name]) for name in state)
    preset = vision.ResNet18_Weights.DEFAULT.transforms()
    assert found.preparation == Preparation(
        *preset.crop_size, tuple(preset.mean), tuple(preset.std), *preset.resize_size
    )


def test_timm_is_asked_for_its_network_and_how_its_images_are_prepared(tmp_path):
    timm = needs("timm")
    weights = tmp_path / "w.pth"
    state = timm.create_model("test_resnet", num_classes=7).state_dict()
    torch.save(state, weights)

    found = model("timm:test_resnet?num_classes=7", weights)

    assert all(torch.equal(found.network.state_dict()[name], state[name]) for name in state)
    told = timm.data.resolve_model_data_config(found.network)
    assert found.preparation.size == told["input_size"][-1]
    assert found.preparation.mean == told["mean"]


@pytest.mark.parametrize(
    ("spec", "how"),
    [
        ("torchvision:resnet18", "torchvision:resnet18.weights=DEFAULT"),
        ("timm:test_resnet", "timm:test_resnet.pretrained=true"),
    ],
)
def test_an_untrained_network_is_refused_with_where_weights_come_from(spec, how):
    needs(spec.partition(":")[0])

    with pytest.raises(UsageError, match=f"untrained; give --weights FILE, or .*'{how}'"):
        model(spec)


def test_a_folder_of_transformers_is_a_network_and_its_processor_says_of_images(tmp_path):
    transformers = needs("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8, num_labels=3,
    )  # fmt: skip
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    told = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**told, "resample": 3}))
    x = torch.randn(2, 3, 16, 16)

    found = model(f"hf:{tmp_path}")

    assert torch.equal(found.network(x).logits, network(x).logits)
    mean, std = (0.5,) * 3, (0.25,) * 3
    assert found.preparation == Preparation(16, mean, std, 16, "bicubic", stretched=True)


def test_what_is_no_folder_of_transformers_starts_no_download(tmp_path):
    needs("transformers")

    with pytest.raises(UsageError, match=r"no folder with a config\.json.*hf download"):
        model(f"hf:{tmp_path}")


# --- images -------------------------------------------------------------------------------------

PLAIN = Preparation(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def photos(tmp_path):
    """Two classes of images, named so that the order of names is not the order of making."""
    pillow = needs("PIL.Image")
    draw = np.random.default_rng(0)
    for name, sizes in (("wasp", [(20, 12)]), ("ant", [(12, 20), (9, 9)])):
        (tmp_path / name).mkdir()
        for at, (width, height) in enumerate(sizes):
            pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
            pillow.fromarray(pixels).save(tmp_path / name / f"{at}.png")
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_of_images_has_a_class_a_sub_folder_in_the_order_of_names(photos):
    (batch,) = read_data(str(photos), "evaluation", PLAIN)

    x, labels = batch
    assert x.shape == (3, 3, 8, 8)
    assert labels.tolist() == [0, 0, 1]
    assert 0 <= x.min() <= x.max() <= 1


def test_images_are_gone_through_again_and_again_in_batches(photos):
    data = image_folder(photos, PLAIN, 2)

    first, again = list(data), list(data)

    assert len(data) == len(first) == 2
    assert [len(labels) for _, labels in first] == [2, 1]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))


def test_images_without_sub_folders_have_no_labels(photos):
    (x,) = read_data(str(photos / "ant"), "calibration", PLAIN)

    assert x.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(("resize", "how"), [(8, "bilinear"), (11, "bilinear"), (10, "bicubic")])
def test_images_are_prepared_as_torchvision_prepares_them(photos, resize, how):
    transforms = needs("torchvision.transforms")
    pillow = needs("PIL.Image")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    kind = transforms.InterpolationMode(how)
    expected = transforms.Compose(
        [
            transforms.Resize(resize, interpolation=kind),
            transforms.CenterCrop(8),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    for path in photos.glob("*/*.png"):
        found = read_image(path, Preparation(8, mean, std, resize, how))

        assert torch.allclose(found, expected(pillow.open(path)), atol=1e-6)


def test_one_mean_makes_grey_images(photos):
    found = read_image(photos / "ant" / "0.png", Preparation(8, (0.5,), (0.5,)))

    assert found.shape == (1, 8, 8)
    assert found.min() >= -1


def test_options_go_before_what_the_network_knows():
    own = Preparation(224, (0.1,) * 3, (0.2,) * 3, 256, "bicubic")

    assert prepared(own, None, None, None) == own
    assert prepared(own, 64, None, None) == Preparation(64, (0.1,) * 3, (0.2,) * 3, None, "bicubic")
    assert prepared(own, None, "0.5,0.5,0.5", None).mean == (0.5,) * 3
    assert prepared(None, 32, "0.5", "0.25") == Preparation(32, (0.5,), (0.25,))
    assert prepared(None, None, None, None) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((32, None, None), "--size, --mean and --std together"),
        ((None, "0.5", None), "--size, --mean and --std together"),
        ((32, "half", "1"), "--mean 'half' is no list of numbers"),
        ((32, "0.5,0.5", "1,1"), "one number a channel, 1 or 3"),
        ((32, "0.5", "0"), "can't be"),
        ((32, "0.5,0.5,0.5", "1"), "can't be"),
    ],
)
def test_options_of_images_that_can_not_be_say_so(options, says):
    with pytest.raises(UsageError, match=says):
        prepared(None, *options)


def test_images_that_nothing_tells_how_to_prepare_are_refused(photos):
    with pytest.raises(UsageError, match="Give --size, --mean and --std as in training"):
        read_data(str(photos), "calibration")


def test_a_folder_without_images_and_an_image_that_is_none_are_named(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    (tmp_path / "ant" / "broken.jpg").write_bytes(b"none")

    with pytest.raises(UsageError, match="empty: has no images"):
        read_data(str(tmp_path / "empty"), "calibration", PLAIN)
    with pytest.raises(UsageError, match=r"broken\.jpg: is no image that can be read"):
        list(read_data(str(photos), "calibration", PLAIN))


def test_images_without_pillow_name_it(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(UsageError, match="needs pillow: pip install pillow"):
        read_data(str(photos), "calibration", PLAIN)


# --- other data ---------------------------------------------------------------------------------


def test_data_are_batches_that_are_there_or_samples_of_a_data_set(own):
    assert len(list(read_data("own_words.py:batches", "calibration"))) == 1
    sizes = [len(x) for (x,) in read_data("own_words.py:samples", "calibration")]
    assert sizes == [64, 6]


def test_a_file_that_is_no_data_says_what_can_be_read(own, tmp_path):
    (tmp_path / "data.xml").write_text("1,2")

    with pytest.raises(UsageError, match=r"a \.xml is no data.*a folder of images, an \.npz"):
        read_data("data.xml", "calibration")


def test_nothing_of_torchvision_is_loaded_for_other_models(own, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.delattr(sys.modules["torchvision"], "__path__", raising=False)

    assert widths(model("own_words.py:make").network) == [4]


def test_images_tell_a_packed_file_how_they_are_prepared(photos):
    prepared_so = Preparation(8, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 11)
    labelled = image_folder(photos, prepared_so, 2)
    unlabelled = image_folder(photos / "ant", prepared_so, 2)

    notes = image_notes(unlabelled, Accuracy(labelled))

    assert json.loads(notes["preprocessing"]) == {
        "size": 8,
        "resize": 11,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
        "resample": "bilinear",
    }
    assert image_notes(unlabelled).keys() == {"preprocessing"}
    assert image_notes([torch.zeros(2, 3)], None) == {}


def test_sub_folders_that_are_called_as_the_networks_classes_are_have_their_numbers(photos):
    data = image_folder(photos, PLAIN, 2, ("bee", "Wasp", "ant"))

    labels = {file.parent.name: at for file, at in zip(data.files, data.labels, strict=True)}
    assert labels == {"wasp": 1, "ant": 2}
    assert tuple(data.classes) == ("bee", "Wasp", "ant")
    others = image_folder(photos, PLAIN, 2, ("cat", "dog"))
    assert list(others.labels) == [0, 0, 1]
    assert tuple(others.classes) == ("ant", "wasp")
    with pytest.raises(UsageError, match="no class 'wasp'; it has 'ant', 'bee'; call the sub-fol"):
        image_folder(photos, PLAIN, 2, ("ant", "bee"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "cat\ndog \n\n"),
        ("names.json", '["cat", "dog"]'),
        ("names.json", '{"1": "dog", "0": "cat"}'),
        ("names.json", '{"0": ["n02121808", "cat"], "1": ["n02084071", "dog"]}'),
    ],
)
def test_names_of_classes_are_read_as_people_have_them(tmp_path, name, text):
    (tmp_path / name).write_text(text)

    assert parse_class_names(tmp_path / name) == ("cat", "dog")


@pytest.mark.parametrize("text", ["", "cat\n\ndog\n", '{"1": "cat"}', "[1, 2]", "{"])
def test_files_that_hold_no_names_of_classes_are_refused_in_a_line(tmp_path, text):
    path = tmp_path / ("names.json" if text[:1] in "[{" and text else "names.txt")
    path.write_text(text)

    with pytest.raises(UsageError, match="names") as refused:
        parse_class_names(path)
    assert "\n" not in str(refused.value)


def test_prune_of_images_writes_a_file_that_tells_of_them(photos, tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))\n"
    )
    out, data = tmp_path / "out", tmp_path / "data"
    data.mkdir()
    for name in ("ant", "wasp"):
        (tmp_path / name).rename(data / name)
    words = f"prune {tmp_path}/net.py:make --calibration {data} --budget macs=50% --out {out}"
    how = "--size 8 --mean 0.4,0.5,0.6 --std 0.2,0.3,0.4 --criterion magnitude --quiet"

    assert main([*words.split(), *how.split()]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out / "model.flexrel")]) == 0

    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["labels", "2: ant, wasp"] in lines
    assert ["input", "input float32[samples, 3, 8, 8]"] in lines
    told = dict(lines)["prepared"]
    assert "size 8" in told
    assert "mean 0.4 0.5 0.6" in told


def test_of_a_large_folder_as_many_images_calibrate_as_memory_holds(photos, monkeypatch):
    data = image_folder(photos, PLAIN, 2)
    monkeypatch.setattr(images, "_BYTES", 2 * 4 * 3 * 8**2)  # two images

    part, (line,) = kept_in_memory(data)

    assert [file.parent.name for file in part.files] == ["ant", "ant"]
    assert [list(part.labels), part.classes] == [[0, 0], ["ant", "wasp"]]
    assert line.startswith("of 3 images 2 are used to calibrate, spread over the folder")
    monkeypatch.setattr(images, "_BYTES", 3 * 4 * 3 * 8**2)
    assert kept_in_memory(data) == (data, ())
    assert kept_in_memory([torch.zeros(9)])[1] == ()


def test_a_file_of_another_kind_is_told_to_be_no_weights(tmp_path):
    np.savez(tmp_path / "w.npz", x=np.zeros(3))

    with pytest.raises(UsageError, match=r"a \.npz is no file of weights; give safetensors"):
        read_weights(tmp_path / "w.npz", nn.Linear(3, 2))


def test_the_one_state_of_a_checkpoint_is_found_whatever_it_is_called(tmp_path):
    state, other = nn.Linear(3, 2).state_dict(), nn.Linear(3, 2).state_dict()
    path, network = tmp_path / "w.pth", nn.Linear(3, 2)
    torch.save({"net": state, "epoch": 3, "optimizer": {"state": {}}}, path)

    read_weights(path, network)

    assert torch.equal(network.weight, state["weight"])
    torch.save({"student": state, "teacher": other}, path)
    with pytest.raises(UsageError, match=r"no tensors by name.* 'student': .*'teacher': "):
        read_weights(path, network)


def test_weights_of_a_network_beside_others_in_its_checkpoint_are_found(tmp_path, capsys):
    state, path, network = nn.Linear(3, 2).state_dict(), tmp_path / "w.ckpt", nn.Linear(3, 2)
    held = {f"model.net._orig_mod.{name}": tensor for name, tensor in state.items()}
    others = {"loss.weight": torch.ones(5), "accuracy.tp": torch.zeros(2)}
    torch.save({"state_dict": {**others, **held}, "epoch": 3}, path)

    read_weights(path, network)

    assert torch.equal(network.weight, state["weight"])
    assert "its 'model.net' is the network; left out: loss.weight, accuracy.tp" in (
        capsys.readouterr().err
    )
    twice = {f"ema.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": {**held, **twice}}, path)
    with pytest.raises(
        UsageError, match=r"tensors under 'model\.net', 'ema'; save those that count"
    ):
        read_weights(path, network)


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(3, 2)


@pytest.mark.parametrize("prefix", ["", "model.", "network."])
def test_weights_of_a_network_fit_one_that_holds_it(tmp_path, prefix):
    state, holder = nn.Linear(3, 2).state_dict(), Holder()
    path = tmp_path / "w.pth"
    torch.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, path)

    read_weights(path, holder)

    assert torch.equal(holder.network.weight, state["weight"])


def test_a_checkpoint_with_objects_says_which_and_how_it_is_converted(tmp_path):
    state, path = nn.Linear(3, 2).state_dict(), tmp_path / "w.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": SimpleNamespace(lr=1)}, path)

    with pytest.raises(
        PackError, match=r"of types.SimpleNamespace, .*'w.ckpt', weights_only=False"
    ):
        read_weights(path, nn.Linear(3, 2))


def test_a_detectors_backbone_is_not_downloaded_where_weights_are_given(tmp_path, monkeypatch):
    def detector(*, weights=None, weights_backbone="DEFAULT", num_classes=3):
        if weights_backbone is not None:
            raise OSError("no connection")
        return nn.Linear(3, num_classes)

    fake = ModuleType("torchvision.models")
    fake.get_model_builder = {"detector": detector}.__getitem__
    fake.get_model = lambda name, **given: fake.get_model_builder(name)(**given)
    fake.get_model_weights = lambda _: {}
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", fake)
    weights = tmp_path / "w.pth"
    torch.save(nn.Linear(3, 2).state_dict(), weights)

    assert model("torchvision:detector?num_classes=2", weights).network.out_features == 2
    with pytest.raises(UsageError, match=r"failed: OSError: no connection$"):
        model("torchvision:detector?num_classes=2&weights_backbone=DEFAULT", weights)
    with pytest.raises(UsageError, match=r"failed: KeyError: 'other'$"):
        model("torchvision:other", weights)
