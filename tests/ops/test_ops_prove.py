"""The verb behind `opticus prove`."""

import pytest

from opticus.ops import nms
from opticus.structures import UnknownNameError, UsageError
from opticus.verbs import prove


@pytest.mark.parametrize("name", ["nms", "iou", "giou", "box_coder", "task_aligned", "soft_nms"])
def test_claims_hold(name):
    proof = prove.prove(name, cases=25)
    assert proof.holds and proof.cases == 50 and proof.formula


def test_a_wrong_op_is_found(monkeypatch):
    right = nms.nms_per_class
    monkeypatch.setattr(nms, "nms_per_class", lambda b, s, l, t: right(b, s, l, min(t * 1.1, 1.0)))
    assert not prove.prove("nms", cases=25).holds


def test_unknown_names_and_counts():
    with pytest.raises(UnknownNameError, match="did you mean 'nms'"):
        prove.prove("nmss")
    with pytest.raises(UsageError, match="at least 1"):
        prove.prove("nms", cases=0)
