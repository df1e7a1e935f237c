"""Make the pictures of the README: `.venv/bin/python tools/make_pictures.py`."""

from __future__ import annotations

from pathlib import Path

import opticus
from opticus.plot.figures import sheet

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"


def main() -> None:
    model = opticus.load("centernet/tiny:scenes", quiet=True)
    data = opticus.open_data("scenes", "test")
    found = model.predict([data[i].picture for i in range(6)], threshold=0.35)
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture = sheet([one.plot() for one in found], columns=3, cell=300)
    picture.quantize(160).save(FOLDER / "scene.png", optimize=True)
    print(FOLDER / "scene.png")


if __name__ == "__main__":
    main()
