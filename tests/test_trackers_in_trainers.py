"""A tracker in trainers of other libraries counts the optimizer's steps, and is in checkpoints."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from flexrel import UsageError
from flexrel.training import Tracker
from networks import random_
from oracles import needs

ROWS = 24


def network():
    return random_(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))


def rows():
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(4, generator=draw), at % 3) for at in range(ROWS)]


def same_history(one, other):
    found, expected = one.state_dict(), other.state_dict()
    same = [found[key] == expected[key] for key in ("steps", "looks", "weight")]
    same += map(torch.equal, found["magnitudes"].values(), expected["magnitudes"].values())
    return all(same) and torch.equal(found["relevance"], expected["relevance"])


def fit(tmp_path, model, tracker, *, epochs, resume=None, accumulate=1):
    pytorch = needs("lightning.pytorch")

    class Classifier(pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = model

        def training_step(self, batch):
            return functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pytorch.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accumulate_grad_batches=accumulate,
        callbacks=[tracker.lightning_callback()],
    )
    data = torch.utils.data.DataLoader(rows(), batch_size=4)
    trainer.fit(Classifier(), data, ckpt_path=resume)
    path = tmp_path / f"epoch{epochs}.ckpt"
    trainer.save_checkpoint(path)
    return path


QUIET = pytest.mark.filterwarnings("ignore")  # of Lightning's and transformers' own code


@QUIET
@pytest.mark.parametrize("accumulate", [1, 3])
def test_lightning_counts_steps_of_the_optimizer(tmp_path, accumulate):
    model = network().train()
    tracker = Tracker(model, every=1)

    fit(tmp_path, model, tracker, epochs=1, accumulate=accumulate)

    history = tracker.history()
    assert history.measurements == ROWS // 4 // accumulate
    assert history.relevance.samples == 4 * history.measurements


@QUIET
def test_lightning_restores_what_was_tracked_to_the_bit(tmp_path):
    whole = Tracker(one := network().train(), every=2)
    fit(tmp_path, one, whole, epochs=2)
    half = Tracker(other := network().train(), every=2)
    path = fit(tmp_path, other, half, epochs=1)

    resumed = Tracker(again := network().train(), every=2)
    fit(tmp_path, again, resumed, epochs=2, resume=path)

    assert same_history(resumed, whole)


class Scored(nn.Module):
    """As a trainer wants it: with labels it returns its loss too."""

    def __init__(self, model):
        super().__init__()
        self.network = model

    def forward(self, x, labels=None):
        scores = self.network(x)
        if labels is None:
            return {"logits": scores}
        return {"loss": functional.cross_entropy(scores, labels), "logits": scores}


def hugging(tmp_path, tracker, model, *, epochs, resume=None):
    needs("accelerate")
    transformers = needs("transformers")
    arguments = transformers.TrainingArguments(
        tmp_path,
        num_train_epochs=epochs,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        save_strategy="epoch",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=[{"x": x, "labels": label} for x, label in rows()],
        callbacks=[tracker],
    )
    trainer.train(resume_from_checkpoint=resume)


@QUIET
def test_hugging_face_restores_what_was_tracked_to_the_bit(tmp_path):
    batches = [{"x": torch.randn(5, 4, generator=torch.Generator().manual_seed(1))}]
    kind = {"every": 2, "output": "norm"}

    def tracked(folder, **asked):
        model = Scored(network())
        tracker = Tracker(model, **kind)
        hugging(tmp_path / folder, tracker.transformers_callback(batches), model, **asked)
        return tracker

    whole = tracked("whole", epochs=2)
    tracked("half", epochs=1)
    resumed = tracked("half", epochs=2, resume=str(tmp_path / "half" / f"checkpoint-{ROWS // 4}"))

    assert whole.history().measurements == ROWS // 4
    assert same_history(resumed, whole)


@QUIET
def test_hugging_face_resumed_without_a_state_says_that_tracking_is_not(tmp_path):
    class State:
        global_step = 7

    class Arguments:
        output_dir = str(tmp_path)
        resume_from_checkpoint = None

    needs("transformers")
    callback = Tracker(network(), every=1).transformers_callback()

    with pytest.warns(UserWarning, match="at step 7, but tracking from the start"):
        callback.on_train_begin(Arguments, State, None)


def test_without_a_trainer_installed_the_error_names_what_to_install(monkeypatch):
    for name in ("lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(UsageError, match="pip install lightning"):
        Tracker(network()).lightning_callback()
    with pytest.raises(UsageError, match="pip install transformers"):
        Tracker(network()).transformers_callback()
