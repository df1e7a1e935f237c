"""`open_data`: one door to all data. A name, a path whose format is found by looking at it, or an iterable of samples."""

from __future__ import annotations

import csv
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from opticus.data import (
    archive,
    cifar,
    coco,
    davis,
    domains,
    folder,
    mnist,
    openimages,
    pairs,
    retrieval,
    segments,
    shards,
    tags,
    tar,
    voc,
    yolo,
)
from opticus.data.findings import check_cheap, refuse
from opticus.data.records import Source
from opticus.data.splits import canonical
from opticus.data.subset import Samples, Subset
from opticus.structures import DataError, Sample, UnknownNameError, UsageError, nearest

OnBad = Literal["raise", "quarantine", "keep"]
HARDER = ("small", "crowded", "occluded", "cluttered", "varied", "hard")  # kinds of "scenes"
EMBEDDED = (
    "digits",
    "scenes",
    "crops",
    "textures",
    "patches",
    "tints",
    "tints-equal",
    "videos",
    "views",
    "copies",
    "sketches",
    "daynight",
    *(f"scenes-{kind}" for kind in HARDER),
)


class Format(NamedTuple):
    """One readable format: what is looked for, whether a path looks like it, and the reader."""

    name: str
    looks_for: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, str], Source]


# Tried in this order; the folder of pictures comes last because it matches most.
FORMATS = (
    Format("coco", "a COCO, LVIS or Objects365 JSON, annotations/*.json or */_annotations.coco.json", coco.matches, coco.read),
    Format("davis", "JPEGImages/480p/<sequence>/ beside ImageSets/2017/*.txt (DAVIS)", davis.matches, davis.read),
    Format("voc", "Annotations/*.xml (Pascal VOC)", voc.matches, voc.read),
    Format("revisited", "gnd_*.pkl beside jpg/ (revisited Oxford, Paris)", retrieval.matches_revisited, retrieval.read_revisited),
    Format(
        "copydays", "original/ beside strong/, crops/ or jpegqual/ (Copydays)", retrieval.matches_copydays, retrieval.read_copydays
    ),
    Format("openimages", "*-annotations-bbox.csv (Open Images)", openimages.matches, openimages.read),
    Format("domains", "trainA/ and trainB/, or A/ and B/ with equal names (two domains)", domains.matches, domains.read),
    Format("yolo", "data.yaml, or images/ beside labels/ (YOLO)", yolo.matches, yolo.read),
    Format("cifar", "data_batch_* or train.bin (CIFAR)", cifar.matches, cifar.read),
    Format("mnist", "*-images-idx3-ubyte[.gz] with labels (MNIST)", mnist.matches, mnist.read),
    Format("tags", "labels.csv with the columns file and labels", tags.matches, tags.read),
    Format("shards", "*.tar with pictures and .cls, .json or .txt beside them (WebDataset)", shards.matches, shards.read),
    Format("folder", "<class>/*.jpg or <split>/<class>/*.jpg (folders of pictures)", folder.matches, folder.read),
)


def open_data(
    source: str | Path | Iterable[Sample],
    split: str = "train",
    *,
    on_bad: OnBad = "raise",
    quarantine: str | Path | None = None,
    **options: Any,
) -> Source:
    """The data set `source`: "digits", "scenes", "crops", "textures", "patches", "tints", "videos", "scenes-hard", "views", "copies" (retrieval), a
    folder, file or archive in a known format, or an iterable of `Sample`;
    "tags:" before a detection set makes it multi-label ("tags:scenes": which digits does a picture show?), "segment:" before one with
    masks or before Pascal VOC gives maps of classes. Pairs of pictures: "sketches", "daynight", folders of two domains, "pairs:" before
    a folder of pictures that hold both halves ("pairs-back:" the other way round); "x4:", "grey:" or "noisy:" before any pictures makes
    pairs of what is left of each and the picture itself.

    `split` is "train", "val" or "test" (with the usual aliases), "database" or "query" of retrieval data. Annotations are checked
    (boxes finite, non-empty and inside, categories known, ids unique): `on_bad="raise"` stops with a DataError that names the first
    bad record, "quarantine" leaves bad records out, warns, and lists them with their reasons in the result's `quarantined`; "keep"
    passes them on. `quarantine` is a CSV written by the doctor, whose records are left out. Options: `masks=True` adds instance masks
    to the targets of data that has them; embedded sets take those of their class (`count`, `seed`, ...). Raises DataError when nothing
    matches.
    """
    if on_bad not in ("raise", "quarantine", "keep"):
        raise UsageError(f"on_bad must be 'raise', 'quarantine' or 'keep', found {on_bad!r}")
    if isinstance(source, str) and source.startswith(tags.PREFIX):
        base = open_data(source.removeprefix(tags.PREFIX), split, on_bad=on_bad, quarantine=quarantine, **options)
        return tags.Tags(base)
    if isinstance(source, str) and source.startswith(segments.PREFIX):
        return _segments(source.removeprefix(segments.PREFIX), split, on_bad, quarantine, options)
    if isinstance(source, str) and source.startswith(domains.PREFIXES):
        return domains.read_pairs(source, split)
    if isinstance(source, str) and (kind := pairs.prefix_of(source)) is not None:
        rest = source.removeprefix(f"{kind}:")
        return pairs.Pairs(open_data(rest, split, on_bad=on_bad, quarantine=quarantine, **options), kind)
    if isinstance(source, str) and source in EMBEDDED:
        return _without(_embedded(source, canonical(split), options), _listed(quarantine, canonical(split)), 0)
    if isinstance(source, (str, Path)):
        data = _from_path(Path(source).expanduser(), split, str(source))
        _apply(data, options)
    else:
        data = Samples(source, split, **options)
    listed = _listed(quarantine, data.split)
    if on_bad == "keep":
        return _without(data, listed, 0)
    findings = [finding for finding in check_cheap(data) if finding.record not in listed]
    if on_bad == "raise":
        refuse(data, findings)
        return _without(data, listed, 0)
    bad = {finding.record: f"{finding.kind}: {finding.detail}" for finding in findings if finding.severity == "error"}
    return _without(data, {**bad, **listed}, sum(1 for record in bad if not record))


def _segments(name: str, split: str, on_bad: OnBad, quarantine: str | Path | None, options: dict[str, Any]) -> Source:
    """Maps of classes: VOC's own where the folder has them, else drawn from the masks of a detection set."""
    root = segments.voc_root(Path(name).expanduser()) if name not in EMBEDDED else None
    if root is not None:
        return _without(segments.VocSegments(root, split), _listed(quarantine, split), 0)
    drawn = {"masks": True} if name.startswith("scenes") and name in EMBEDDED else {}
    base = open_data(name, split, on_bad=on_bad, quarantine=quarantine, **drawn, **options)
    if base.task == "detect" and not drawn:
        _apply(base, {"masks": True})
    return base if base.task == "segment" else segments.Segments(base)


def format_of(path: Path) -> Format:
    """The format of the data at `path`, found by looking; DataError listing what was looked for when nothing matches."""
    for kind in FORMATS:
        if kind.matches(path):
            return kind
    what = "the folder is empty" if path.is_dir() and not any(path.iterdir()) else "no known format"
    if path.is_file():
        what = f"a single {path.suffix or 'nameless'} file is not a data set; give its folder"
    looked = "; ".join(kind.looks_for for kind in FORMATS)
    raise DataError(f"{path}: {what} (looked for: {looked})")


def _from_path(path: Path, split: str, word: str) -> Source:
    if shards.is_pattern(word) and not path.exists():
        return shards.read(str(path) if not (tar.is_url(word) or word.startswith("pipe:")) else word, split)
    if not path.exists():
        near = nearest(word, EMBEDDED)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{word}: neither an embedded data set ({', '.join(EMBEDDED)}) nor a path that exists{hint}")
    if path.is_file() and archive.is_archive(path) and not shards.matches(path):
        path = archive.unpack(path)
    try:
        return format_of(path).read(path, split)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _apply(data: Source, options: dict[str, Any]) -> None:
    for key, value in options.items():
        if key != "masks":
            raise UnknownNameError("data option", key, ["masks"])
        if value and getattr(data, "read_masks", None) is None:
            raise UsageError(f"masks=True: the data of split {data.split!r} has no instance masks")
        setattr(data, key, value)


def _listed(file: str | Path | None, split: str) -> dict[str, str]:
    """Records of a quarantine CSV (columns split, record, kind, detail, ...) that concern `split`."""
    if file is None:
        return {}
    path = Path(file)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: the quarantine list cannot be read ({error})") from error
    if rows and not {"split", "record", "kind"} <= set(rows[0]):
        raise DataError(f"{path}: a quarantine list has the columns split, record and kind, found {', '.join(rows[0])}")
    return {row["record"]: f"{row['kind']}: {row.get('detail', '')}" for row in rows if row["split"] in ("", split)}


def _without(data: Source, bad: dict[str, str], general: int) -> Source:
    """The data without the records in `bad`; a warning says how many and why, errors of no record in particular are refused."""
    if general:
        raise DataError(f"the data has an error that belongs to no single record: {bad['']}")
    if not bad:
        return data
    keep = [i for i in range(len(data)) if data.id_of(i) not in bad]
    left = len(data) - len(keep)
    reasons = Counter(reason.partition(":")[0] for reason in bad.values()).most_common()
    words = ", ".join(f"{count} x {kind}" for kind, count in reasons)
    warnings.warn(f"{left} of {len(data)} records of split {data.split!r} are left out as bad ({words})", stacklevel=3)
    return Subset(data, keep, bad)


def _embedded(name: str, split: str, options: dict[str, Any]) -> Source:
    from opticus.data.embedded.copies import Copies
    from opticus.data.embedded.crops import Crops
    from opticus.data.embedded.daynight import DayNight
    from opticus.data.embedded.digits import Digits
    from opticus.data.embedded.patches import Patches
    from opticus.data.embedded.scenes import Scenes
    from opticus.data.embedded.sketches import Sketches
    from opticus.data.embedded.textures import Textures
    from opticus.data.embedded.tints import Tints
    from opticus.data.embedded.videos import Videos
    from opticus.data.embedded.views import Views

    makers: dict[str, Callable[..., Source]] = {"digits": Digits, "scenes": Scenes, "crops": Crops, "textures": Textures}
    makers |= {
        "videos": Videos,
        "views": Views,
        "copies": Copies,
        "sketches": Sketches,
        "daynight": DayNight,
        "patches": Patches,
        "tints": Tints,
        "tints-equal": functools.partial(Tints, equal=True),
    }
    makers |= {f"scenes-{kind}": functools.partial(Scenes, challenge=kind) for kind in HARDER}
    if name in ("views", "copies"):
        split = retrieval.part_of(split, name)
    elif split not in ("train", "val", "test"):
        raise DataError(f"{name} has the splits train, val, test, found {split!r}")
    try:
        return makers[name](split, **options)
    except TypeError as error:
        raise UsageError(f"{name}: {error}") from error
