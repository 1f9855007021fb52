"""Reads pages strictly, and makes a result that has all there can be in one."""

from functools import cache
from html.parser import HTMLParser

import torch
from torch import nn

import flexrel
from networks import random_

VOID = {"meta", "br", "img"}  # elements of HTML that have no end
INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


class Page(HTMLParser):
    """Reads a page strictly: what is opened is closed, in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.links, self.words, self.codes = [], [], [], [], []
        self.attributes, self.ids, self.sources, self.rows = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in {"href", "src", "xlink:href", "action", "data"}]
        self.ids += [v for k, v in attrs if k == "id"]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"} and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        if self.open[-1:] in (["script"], ["style"]):
            self.sources.append(data)
            return
        self.words.append(data)
        if self.open[-1:] == ["code"]:
            self.codes.append(data)
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def row(self, name):
        """Return the cells of the first row that begins so."""
        return next(row for row in self.rows if row[0].startswith(name))

    def having(self, **wanted):
        """Return the attributes of all elements with such ones, `class_` for class."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in wanted.items()}
        return [
            found
            for _, found in self.attributes
            if all(found.get(name) == value for name, value in wanted.items())
        ]


def network():
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 12))
    model.add_module("relu", nn.ReLU())
    model.add_module("second", nn.Linear(12, 8))
    model.add_module("relu2", nn.ReLU())
    model.add_module("last", nn.Linear(8, 3))
    return random_(model)


@cache
def compared():
    """Return a result beside others, of a network that answers a tenth wrong."""
    labels = network()(INPUTS).argmax(1)
    labels[::10] = (labels[::10] + 1) % 3
    evaluate = flexrel.Accuracy([(INPUTS, labels)])
    result = flexrel.prune(
        network(),
        calibration=[INPUTS],
        evaluate=evaluate,
        target="30%",
        budgets=["parameters=90%"],
        criterion="flexrel:0.3",
    )
    return flexrel.compare(result, network(), calibration=[INPUTS], evaluate=evaluate)


@cache
def pictured():
    """Return a result on images, in colour and too large to be shown whole, and the images."""
    torch.manual_seed(0)
    x = torch.rand(40, 3, 96, 64)
    model = nn.Sequential(nn.Conv2d(3, 8, 9), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = random_(nn.Sequential(*model, nn.Linear(8, 3)))
    labels = model(x).argmax(1)
    labels[::3] = (labels[::3] + 1) % 3
    evaluate = flexrel.Accuracy(list(zip(x.split(16), labels.split(16), strict=True)))
    request = {"budgets": ["sparsity=80%"], "criterion": "magnitude", "recover": "none"}
    return flexrel.prune(model, calibration=[x], evaluate=evaluate, **request), x
