"""The figure of centring and sharpening: what it claims is in its numbers."""

import math

import pytest

import opticus


def test_only_centred_and_sharpened_answers_are_sure_and_differ(tmp_path):
    done = opticus.explain("centring", opticus.create("dino/tiny"), data="digits", out=tmp_path, limit=32)
    found, most = done.numbers, math.log(24)
    assert found["centred"]["entropy"] > 0.95 * most and found["sharpened"]["entropy"] < 0.25 * most
    both = found["centred and sharpened"]
    assert both["information"] > 3 * max(found[name]["information"] for name in ("plain", "centred", "sharpened"))
    assert done.picture.size[0] > 600 and done.png.is_file() and done.page.is_file()


def test_bad_settings_are_named(tmp_path):
    model = opticus.create("dino/tiny")
    with pytest.raises(opticus.Error, match="outputs must be a whole number of at least 2"):
        opticus.explain("centring", model, data="digits", out=tmp_path, outputs=1)
    with pytest.raises(opticus.Error, match="needs data="):
        opticus.explain("centring", model, out=tmp_path)
