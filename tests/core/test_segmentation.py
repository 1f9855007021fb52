"""Classes of pixels: as scikit-learn counts them, errors told by images."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import flexrel
from flexrel import Accuracy, Regression, Segmentation
from flexrel.cli import main
from flexrel.core.evaluate import evaluate_of
from flexrel.errors import ModelError, UsageError

DRAW = torch.Generator().manual_seed(0)
X = torch.rand(12, 3, 8, 8, generator=DRAW)


def network(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, classes, 3, padding=1)
    )


@torch.no_grad()
def labelled(classes=4):
    """Return what the network says, noise in it that differs from image to image, and holes."""
    said = network(classes)(X)
    y = said.argmax(1) if classes > 1 else (said[:, 0] > 0).long()
    noise = torch.rand(y.shape, generator=DRAW) < torch.linspace(0, 0.4, len(X))[:, None, None]
    y = torch.where(noise, (y + 1) % max(classes, 2), y)
    return y.masked_fill(torch.rand(y.shape, generator=DRAW) < 0.1, 255)


Y = labelled()
BATCHES = list(zip(X.split(5), Y.split(5), strict=True))


@torch.no_grad()
def test_accuracy_and_overlap_are_those_of_scikit_learn_on_pixels_that_are_labelled():
    metrics = pytest.importorskip("sklearn.metrics")
    known = Y != 255
    said, truth = network()(X).argmax(1)[known], Y[known]

    found = Segmentation(BATCHES)(network())

    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
    assert found["mIoU"] == pytest.approx(metrics.jaccard_score(truth, said, average="macro"))


@torch.no_grad()
@pytest.mark.parametrize("ignored", [255, -100, -1])
@pytest.mark.parametrize("form", [lambda y: y, lambda y: y[:, None], lambda y: y.float()])
def test_one_score_a_pixel_says_yes_or_no(ignored, form):
    y = labelled(1)
    said, known = network(1)(X)[:, 0] > 0, y != 255

    found = Segmentation([(X, form(y.masked_fill(~known, ignored)))])(network(1))

    assert found["accuracy"] == pytest.approx(float((said == y)[known].double().mean()))


class Named(nn.Module):
    """Returns what networks of torchvision do."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        scores = self.inner(x)
        return {"out": scores, "aux": -scores}


def test_the_scores_of_torchvisions_networks_are_those_under_out():
    assert Segmentation(BATCHES)(Named()) == Segmentation(BATCHES)(network())


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (Y, Segmentation),
        (Y[:, None].float(), Segmentation),
        (Y / 255, Regression),
        (Y[:, 0], Accuracy),  # several labels a sample
        (Y[:, 0, 0], Accuracy),
    ],
)
def test_data_are_measured_as_they_are_labelled(labels, kind):
    assert type(evaluate_of([(X, labels)])) is kind


@torch.no_grad()
def shares(model):
    known = Y != 255
    right = (model(X).argmax(1) == Y) & known
    return right.sum((1, 2)).double().numpy(), known.sum((1, 2)).double().numpy()


def test_errors_count_images_and_classes_that_lost_count_pixels():
    result = flexrel.prune(
        network(),
        calibration=[X],
        evaluate=BATCHES,
        target="accuracy-drop=5%",
        criterion="magnitude",
        recover="none",
    )

    (before, pixels), (now, _) = shares(network()), shares(result.model)
    ratio = before.sum() / pixels.sum()
    spread = np.sqrt(np.square(before - ratio * pixels).sum() / 11) / pixels.mean()
    assert result.samples == 12
    assert result.standard_error == pytest.approx(spread / np.sqrt(12), rel=1e-5)
    assert result.achieved.accuracy == pytest.approx(now.sum() / pixels.sum())
    assert result.achieved.accuracy >= ratio - 0.05
    assert result.promise is None
    assert any("no evaluation images are set aside" in line for line in result.warnings)
    changed = result.evidence.changed
    assert (changed.unit, changed.samples) == ("pixels", pixels.sum())
    assert changed.won - changed.lost == now.sum() - before.sum()
    for one in changed.classes:
        of = one.label == Y
        right = [int((m(X).argmax(1) == Y)[of].sum()) for m in (network(), result.model)]
        assert (one.samples, one.right_dense, one.right) == (int(of.sum()), *right)
    assert f"Of {int(pixels.sum()):,} pixels" in result.report()


def test_the_error_is_that_of_images_drawn_again():
    generator = np.random.default_rng(0)
    right, pixels = shares(network())
    drawn = generator.integers(0, 12, (4000, 12))
    again = right[drawn].sum(1) / pixels[drawn].sum(1)

    tally = Segmentation(BATCHES).tally(network())

    bootstrap = again.std() * np.sqrt(12 / 11)
    assert tally.deviation / np.sqrt(12) == pytest.approx(bootstrap, rel=0.05)


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([], "is empty"),
        ([X], "has no labels"),
        ([(X, Y[:, ::2, ::2])], r"\[12, 4, 4\], the network's scores \[12, 4, 8, 8\]; .*interpol"),
        ([(X, Y / 255)], r"no whole numbers, .*torch.as_tensor\(numpy.array\(mask\)\)"),
        ([(X, Y.clamp_max(254) + 1)], "go from 1 to 4, the network tells 4 classes apart"),
        ([(X, torch.full_like(Y, 255))], "all 768 pixels .* are labelled 255, -100, -1"),
    ],
)
def test_labels_that_say_nothing_of_pixels_are_refused(batches, says):
    with pytest.raises(UsageError, match=says):
        Segmentation(batches)(network())


def test_what_gives_no_scores_of_pixels_is_refused_and_so_is_an_iterator():
    with pytest.raises(ModelError, match=r"scores \[images, classes, height, width\].* \[5, 3\]"):
        Segmentation(BATCHES)(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(UsageError, match="gone after one use"):
        Segmentation(iter(BATCHES))


def test_the_command_line_measures_pixels_and_takes_a_target_on_their_overlap(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),"
        " nn.Conv2d(16, 4, 3, padding=1))\n"
    )
    torch.save(network().state_dict(), "net.pth")
    np.savez("eval.npz", x=X, y=Y)
    words = "prune net.py:make --weights net.pth --calibration eval.npz --evaluation eval.npz"

    code = main([*words.split(), "--target", "mIoU-0.1", "--criterion", "magnitude", "--json"])

    assert code == 0
    told = json.loads(capsys.readouterr().out)
    dense, now = (told["achieved"][key]["mIoU"] for key in ("metrics_dense", "metrics"))
    assert dense == pytest.approx(Segmentation(BATCHES)(network())["mIoU"])
    assert dense - 0.1 <= now
