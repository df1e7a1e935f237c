"""Figures and the report: well-formed, self-contained, escaped, within their size, and robust to missing parts."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from opticus.plot import figures
from opticus.plot.comparison import label_heights
from opticus.plot.report import Pair, write_report
from opticus.structures import DataError, Instances, Picture

NAMES = ["cat", "<script>alert(1)</script>", '$x^2$ & "quoted"', "数字"]


def pr():
    precision = np.linspace(1, 0, 101)[None].repeat(4, 0)
    precision[3] = np.nan
    return {"recall": np.linspace(0, 1, 101), "AP50": precision, "AP": precision / 2}


def columns(n=40):
    nan = float("nan")
    return {
        "step": list(range(n)),
        "train/heat": [5.0 / (i + 1) for i in range(n)],
        "lr": [1e-3] * n,
        "val/AP": [nan if i % 10 else i / n for i in range(n)],
    }


def pair(size=128, focus=None, seed=0):
    pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    truth = Instances(torch.tensor([[10.0, 10, 60, 60]]), torch.tensor([1]), (size, size))
    found = Instances(truth.boxes + 3, torch.tensor([2]), (size, size), torch.tensor([0.8]))
    return Pair(Picture(pixels), truth, found, "<b>scene</b> & co", focus)


class Checked(HTMLParser):
    """Collects tags, and every address that the page refers to."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "xlink:href")]


@pytest.mark.parametrize(
    "make",
    [
        lambda: figures.curves(columns()),
        lambda: figures.precision_recall(pr(), NAMES),
        lambda: figures.confusion(np.arange(25).reshape(5, 5), NAMES, background=True),
        lambda: figures.bars([{"name": name, "AP": 0.5 if i else None} for i, name in enumerate(NAMES)], "AP"),
    ],
)
def test_figures_are_well_formed_and_follow_the_page_colour(make):
    text = make()
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and "currentColor" in text and "<script>" not in text
    assert "mathdefault" not in text and text == make()  # no formula in names or ticks; the same bytes every time


def test_figures_leave_no_global_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.curves(columns())
    assert dict(matplotlib.rcParams) == before


def test_empty_figures_do_not_fail():
    nothing = np.full((2, 101), np.nan)
    assert "<svg" in figures.precision_recall({"recall": np.linspace(0, 1, 101), "AP50": nothing}, ["a", "b"])
    assert "<svg" in figures.bars([], "AP")
    assert "<svg" in figures.confusion(np.zeros((1, 1)), ["a"])
    assert "<svg" in figures.curves({"step": [1, 2]})


def test_report_is_self_contained_and_escaped(tmp_path):
    path = write_report(
        tmp_path / "run" / "report.html",
        title="<i>run</i>",
        names=NAMES,
        summary=[{"system": "<u>ours</u>", "AP": 0.5}, {"system": "baseline", "AP": None}],
        curves=columns(),
        per_class=[{"name": name, "AP": 0.25} for name in NAMES],
        pr=pr(),
        confusion=np.eye(5, dtype=int) * 3,
        pairs=[pair()],
        mistakes=[pair(focus=(10, 10, 60, 60))],
        notes=["a <note>"],
        args={"lr": "<1>"},
        env={"torch": torch.__version__},
    )
    text = path.read_text()
    page = Checked()
    page.feed(text)
    assert "script" not in page.tags and "u" not in page.tags and "i" not in page.tags and "b" not in page.tags
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    for heading in (
        "Summary",
        "Training",
        "Per class",
        "Precision and recall",
        "Confusion matrix",
        "The worst mistakes",
        "Settings",
    ):
        assert heading in text
    assert page.tags.count("img") == 4 and [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_every_part_is_optional(tmp_path):
    assert "<h1>Report</h1>" in write_report(tmp_path / "r.html").read_text()
    bare = Pair(torch.zeros(20, 20, 3, dtype=torch.uint8), None, None, "nothing")
    assert "nothing" in write_report(tmp_path / "r.html", pairs=[bare], curves={"step": [1.0]}).read_text()


def test_many_noisy_pictures_stay_within_three_megabytes(tmp_path):
    path = write_report(tmp_path / "r.html", names=NAMES, pairs=[pair(480, seed=i) for i in range(24)])
    assert path.stat().st_size < 3_000_000 and path.read_text().count("<img") == 48


def test_reading_results_csv(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("step,epoch,train/loss,val/AP\n10,0,2.5,\n20,0,1.5,0.1\n20,1,1.25,0.2\n30,1,1.0")
    read = figures.read_curves(path)
    assert read["step"] == [10, 20] and read["train/loss"] == [2.5, 1.25]
    assert np.isnan(read["val/AP"][0]) and read["val/AP"][1] == 0.2
    path.write_text("epoch\n1\n")
    with pytest.raises(DataError, match=r"results\.csv: expected a column 'step', found epoch"):
        figures.read_curves(path)
    with pytest.raises(DataError, match=r"expected a results\.csv"):
        figures.read_curves(tmp_path / "absent.csv")


def test_sheet_of_pictures():
    pictures = [torch.full((32, 64, 3), 40 * i, dtype=torch.uint8) for i in range(5)]
    image = figures.sheet(pictures, [f"very long caption number {i}" for i in range(5)], columns=3, cell=96)
    assert image.size[0] > 3 * 96 and image.size[1] > 2 * 96
    assert figures.sheet([]).size[0] > 0


def test_names_beside_points_cover_neither_each_other_nor_points():
    random = np.random.default_rng(3)
    x, y = random.uniform(0, 5, 22), np.round(random.uniform(0.95, 1.0, 22), 3)  # many alike, as accuracies on digits are
    heights = label_heights(x, y, width=0.2, height=0.04)
    across, up, names = x / np.ptp(x), y / np.ptp(y), np.asarray(heights) / np.ptp(y)
    for i in range(22):
        for j in range(22):
            if i < j and abs(across[i] - across[j]) < 0.2:
                assert abs(names[i] - names[j]) > 0.0399
            if 0 < across[j] - across[i] < 0.2:
                assert abs(up[j] - names[i]) > 0.0199
    assert np.median(np.abs(names - up)) < 0.04
    assert label_heights([1.0], [0.5]) == [0.5]
