"""A pruned network in a folder comes back offline, the same to the bit, with class and widths."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

import flexrel
from flexrel import PackError, Plan, UsageError
from flexrel.cli.models import read_model
from flexrel.core.measurement import silent
from oracles import needs

IMAGES = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(24) % 4
WORDS = torch.randint(0, 50, (16, 6), generator=torch.Generator().manual_seed(2))


class Convolutions(nn.Module):
    """Small, with a norm, and a buffer that no state has."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3)
        )
        self.register_buffer("scale", torch.full((12, 1, 1), 0.5), persistent=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head((self.body(x) * self.scale).relu().mean((2, 3)))


def convolutions():
    torch.manual_seed(0)
    return Convolutions().eval()


def bert(kind="BertForSequenceClassification", dtype=torch.float32):
    transformers = needs("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        num_labels=3,
        max_position_embeddings=12,
    )
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval().to(dtype)


def pruned(model, data, **options):
    options = {"budgets": "macs=60%", "criterion": "magnitude", "recover": "none"} | options
    return flexrel.prune(model, calibration=data, **options)


def words():
    return [{"input_ids": WORDS, "attention_mask": torch.ones_like(WORDS)}]


@pytest.fixture(scope="module")
def small():
    return pruned(convolutions(), [IMAGES])


@pytest.fixture(scope="module")
def classifier():
    return pruned(bert(), words())


def logits(model):
    with torch.no_grad():
        return model(**words()[0]).logits


def test_a_transformer_comes_back_with_its_class_and_widths(classifier, tmp_path):
    before = torch.get_rng_state()

    flexrel.hub.save(classifier, tmp_path / "bert")
    back = flexrel.hub.load(tmp_path / "bert")

    assert type(back) is type(classifier.model)
    assert {n: p.shape for n, p in back.named_parameters()} == {
        n: p.shape for n, p in classifier.model.named_parameters()
    }
    assert sum(p.numel() for p in back.parameters()) < sum(p.numel() for p in bert().parameters())
    assert torch.equal(logits(back), logits(classifier.model))
    assert not back.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("BertForMaskedLM", {}),  # its head is tied to the table of words
        ("BertForSequenceClassification", {"granularity": "head", "budgets": "sparsity=25%"}),
        ("BertForSequenceClassification", {"granularity": "element", "budgets": "sparsity=50%"}),
        ("BertForSequenceClassification", {"values": "int8"}),
    ],
)
def test_it_comes_back_whatever_was_cut_or_rounded(kind, options, tmp_path):
    result = pruned(bert(kind), words(), **options)

    flexrel.hub.save(result, tmp_path / "bert")

    assert torch.equal(logits(flexrel.hub.load(tmp_path / "bert")), logits(result.model))


def test_it_comes_back_in_its_own_dtype(tmp_path):
    result = pruned(bert(dtype=torch.bfloat16), words())

    flexrel.hub.save(result, tmp_path / "bert")
    back = flexrel.hub.load(tmp_path / "bert")

    assert {p.dtype for p in back.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(back), logits(result.model))


def test_a_network_of_ones_own_comes_back_into_its_class(small, tmp_path):
    flexrel.hub.save(small, tmp_path / "net")
    into = convolutions()
    with torch.no_grad():
        into.head.weight.zero_()

    back = flexrel.hub.load(tmp_path / "net", into=into)

    assert back is into
    assert back.body[3].out_channels == small.model.body[3].out_channels < 12
    assert torch.equal(back(IMAGES), small.model(IMAGES))


def test_the_folder_has_weights_config_plan_records_and_card_and_no_pickle(classifier, tmp_path):
    folder = tmp_path / "bert"
    flexrel.hub.save(classifier, folder)

    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "plan.json",
        "result.json",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        shape = file.get_slice("classifier.weight").get_shape()
    assert shape == list(classifier.model.classifier.weight.shape)
    plan = Plan.load(folder / "plan.json")
    assert {n: m.tolist() for n, m in plan.masks.items()} == {
        n: m.tolist() for n, m in classifier.plan.masks.items()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["bert"]  # nothing is left beside it


def test_the_card_has_the_evidence(tmp_path):
    labelled = [(IMAGES, LABELS)]
    result = pruned(convolutions(), labelled, evaluate=labelled)
    flexrel.hub.save(result, tmp_path / "net", data="Digits of 1998.", command="python prune.py")

    card = (tmp_path / "net" / "README.md").read_text()

    head, _, body = card.removeprefix("---\n").partition("---\n")
    assert "library_name: flexrel" in head
    dense, now = result.dense, result.achieved
    assert f"| parameters | {dense.parameters:,} | {now.parameters:,} |" in body
    assert f"| MACs | {dense.macs:,} | {now.macs:,} |" in body
    assert f"| accuracy | {100 * dense.accuracy:.2f} % | {100 * now.accuracy:.2f} % |" in body
    assert "macs at most" in body
    assert "calibration: 24 samples" in body
    assert "evaluation: 24 labelled samples" in body
    assert "Digits of 1998." in body
    assert "python prune.py" in body
    assert 'flexrel.hub.load("net", into=Convolutions(...))' in body
    assert str(tmp_path) not in card


def test_what_prepares_inputs_goes_along(classifier, tmp_path):
    transformers = needs("transformers")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nyes\nno")
    tokenizer = transformers.BertTokenizer(str(vocabulary))

    flexrel.hub.save(classifier, tmp_path / "bert", processing=tokenizer)

    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "bert", local_files_only=True)
    assert back("yes no")["input_ids"] == tokenizer("yes no")["input_ids"]


def test_it_is_uploaded_only_where_that_is_asked(small, tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repo_id, *, exist_ok):
            calls.append(("create", repo_id, exist_ok))

        def upload_folder(self, *, repo_id, folder_path):
            calls.append(("upload", repo_id, folder_path))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api))

    flexrel.hub.save(small, tmp_path / "one")
    assert calls == []
    flexrel.hub.save(small, tmp_path / "two", push_to_hub="me/net")

    assert calls == [
        ("create", "me/net", True),
        ("upload", "me/net", str(tmp_path / "two")),
    ]
    assert 'load("me/net"' in (tmp_path / "two" / "README.md").read_text()


def test_without_the_library_nothing_is_written(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(UsageError, match=r"pip install 'flexrel\[hub\]'"):
        flexrel.hub.save(small, tmp_path / "net", push_to_hub="me/net")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(small, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "mine").write_text("mine")

    with pytest.raises(UsageError, match="is there already"):
        flexrel.hub.save(small, tmp_path / "net")

    assert [path.name for path in (tmp_path / "net").iterdir()] == ["mine"]


def test_an_empty_folder_is_filled(small, tmp_path):
    (tmp_path / "net").mkdir()

    flexrel.hub.save(small, tmp_path / "net")

    assert (tmp_path / "net" / "model.safetensors").is_file()


def test_what_fails_leaves_nothing(small, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            (folder / "half.json").write_text("{")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        flexrel.hub.save(small, tmp_path / "net", processing=Broken())

    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_result_is_told(small, tmp_path):
    with pytest.raises(UsageError, match=r"what flexrel.prune returned, not a Convolutions"):
        flexrel.hub.save(small.model, tmp_path / "net")
    with pytest.raises(UsageError, match=r"a str, without save_pretrained"):
        flexrel.hub.save(small, tmp_path / "net", processing="bert-base")


def test_an_exported_program_is_told_where_it_goes(tmp_path):
    result = pruned(convolutions(), [IMAGES], options=flexrel.PruneOptions(form="exported"))

    with pytest.raises(UsageError, match=r"model\.pt2"):
        flexrel.hub.save(result, tmp_path / "net")


def test_another_class_is_refused(small, classifier, tmp_path):
    flexrel.hub.save(small, tmp_path / "net")
    flexrel.hub.save(classifier, tmp_path / "bert")

    with pytest.raises(UsageError, match="holds a Convolutions, and into= is a Sequential"):
        flexrel.hub.load(tmp_path / "net", into=nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UsageError, match=r"holds a Convolutions.* pass into="):
        flexrel.hub.load(tmp_path / "net")
    config = tmp_path / "bert" / "config.json"
    config.write_text(config.read_text().replace("16", "8"))
    with pytest.raises(UsageError, match="does not fit the model"):
        flexrel.hub.load(tmp_path / "bert")


def test_what_is_missing_or_damaged_is_told(small, tmp_path):
    folder = tmp_path / "net"
    with pytest.raises(UsageError, match="no such folder"):
        flexrel.hub.load(folder)
    flexrel.hub.save(small, folder)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()

    weights.write_bytes(data[:-5])
    with pytest.raises(PackError, match="damaged"):
        flexrel.hub.load(folder, into=convolutions())
    weights.unlink()
    with pytest.raises(UsageError, match=r"has no model\.safetensors"):
        flexrel.hub.load(folder, into=convolutions())


def test_weights_of_others_are_told(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path / "bert")

    with pytest.raises(UsageError, match=r"was not written by flexrel\.hub\.save"):
        flexrel.hub.load(tmp_path / "bert")


def test_the_command_line_takes_such_a_folder_as_a_model(classifier, tmp_path):
    flexrel.hub.save(classifier, tmp_path / "bert")

    found = read_model(f"hf:{tmp_path / 'bert'}", None, 0, silent)

    assert torch.equal(logits(found.network), logits(classifier.model))
