"""The report of a detector says what its errors cost."""

import re

import torch

import opticus
from opticus.data.open import open_data
from opticus.metrics.tide import tide
from opticus.structures import Instances
from opticus.verbs.evaluate import score
from opticus.verbs.report import report_of


def test_report_holds_the_error_breakdown(tmp_path):
    torch.manual_seed(0)
    data = open_data("scenes", "test", count=3)
    model = opticus.create("centernet/tiny", classes=10)
    done = score(model, data, "test", keep=1)
    text = report_of(tmp_path, model, done, data, None).read_text("utf-8")
    section = re.search(r'<section id="errors">.*?</section>', text, re.S)
    assert section is not None and "What the errors cost" in section[0] and "<script" not in text
    found = tide(done.metric)
    for row in found.rows():
        assert row["error"] in section[0] and f"{row['dAP']:.3f}" in section[0] and f">{row['count']:,}<" in section[0]


def test_no_object_no_breakdown(tmp_path):
    torch.manual_seed(0)
    data = open_data("scenes", "test", count=1)
    sample = data[0]
    sample.target = Instances.empty(sample.picture.size)
    empty = open_data([sample], "test", names=data.names)
    model = opticus.create("centernet/tiny", classes=10)
    text = report_of(tmp_path, model, score(model, empty, "test"), empty, None).read_text("utf-8")
    assert 'id="errors"' not in text
