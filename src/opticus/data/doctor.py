"""`doctor`: looks at every record of a data set and says what is wrong with it; refuses nothing, repairs nothing."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from opticus.data.decode import decode, header
from opticus.data.findings import Finding, Severity, check_cheap
from opticus.data.open import open_data
from opticus.data.records import Source, digest
from opticus.structures import Classes, DataError, ImageError, Instances, LabelMap, Picture, Sample, Target
from opticus.structures.files import write_text

_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jfif", ".jpe"},
    "MPO": {".jpg", ".jpeg", ".mpo"},
    "PNG": {".png"},
    "BMP": {".bmp"},
    "GIF": {".gif"},
    "WEBP": {".webp"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
}
_RANK = {"error": 0, "warning": 1, "info": 2}
_SHOWN = 5  # records listed for each kind of finding in the table


@dataclass(slots=True)
class Summary:
    """What a split holds: counts of records, of objects for each class, and of pixels for each value of its label maps."""

    records: int = 0
    objects: dict[str, int] = field(default_factory=dict[str, int])
    mask_values: dict[int, int] = field(default_factory=dict[int, int])


@dataclass(slots=True)
class Report:
    """The doctor's findings, worst first, and a summary of each split."""

    source: str
    findings: list[Finding]
    splits: dict[str, Summary]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(1 for finding in self.findings if finding.severity == "error")

    @property
    def exit_code(self) -> int:
        """0 if there is nothing worse than information, else 1."""
        return int(any(finding.severity != "info" for finding in self.findings))

    def table(self) -> str:
        """The report as text: a line for each split and kind, and the first records of each kind."""
        lines = [self.source]
        for name, summary in self.splits.items():
            objects = sum(summary.objects.values())
            lines.append(f"  {name}: {summary.records} records, {objects} labels in {len(summary.objects)} classes")
            if summary.mask_values:
                total = sum(summary.mask_values.values())
                shares = ", ".join(f"{value}: {100 * n / total:.2f} %" for value, n in sorted(summary.mask_values.items()))
                lines.append(f"    mask values: {shares}")
        kinds: dict[tuple[str, str], list[Finding]] = defaultdict(list)
        for finding in self.findings:
            kinds[finding.severity, finding.kind].append(finding)
        for (severity, kind), found in kinds.items():
            lines.append(f"  {severity}: {kind} ({len(found)})")
            lines += [f"    [{f.split}] {f.record or f.file}: {f.detail}" for f in found[:_SHOWN]]
            if len(found) > _SHOWN:
                lines.append(f"    and {len(found) - _SHOWN} more")
        if not self.findings:
            lines.append("  nothing found")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The report as JSON."""
        splits: dict[str, Any] = {
            name: {"records": s.records, "objects": s.objects, "mask_values": s.mask_values} for name, s in self.splits.items()
        }
        findings = [finding._asdict() for finding in self.findings]
        return json.dumps({"source": self.source, "errors": self.errors, "splits": splits, "findings": findings}, indent=1)

    def write_quarantine(self, path: str | Path) -> Path:
        """Write the errors that name a record as CSV, which `open_data(..., quarantine=path)` leaves out of its data."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("split", "record", "kind", "detail", "file"))
        for finding in self.findings:
            if finding.severity == "error" and finding.record:
                writer.writerow((finding.split, finding.record, finding.kind, finding.detail, finding.file))
        return write_text(path, text.getvalue())


def doctor(source: str | Path | Iterable[Sample], *, splits: Iterable[str] | None = None, threads: int = 2) -> Report:
    """Examine all splits (or those named) of the data set `source`: annotations, ids, and every picture, which is decoded.

    Errors: corrupt or truncated pictures, boxes that are empty, negative, outside or not finite, unknown categories and images,
    duplicate ids, sizes that contradict the picture. Warnings: the same picture in two splits or twice in one, classes without
    objects, file names with the wrong extension. Of shards also: cut-off or damaged tar files, samples without picture or class,
    members there twice or whose name leads outside; nothing is unpacked. Information: EXIF rotation. Raises DataError only when there is no data set.
    """
    held = source if isinstance(source, (str, Path)) else list(source)
    first = _any_split(held, splits)
    names = list(splits) if splits is not None else list(first.splits)
    seen: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    findings: list[Finding] = []
    summaries: dict[str, Summary] = {}
    for name in names:
        data = first if name == first.split else open_data(held, name, on_bad="keep")
        findings += check_cheap(data)
        with ThreadPoolExecutor(max_workers=threads) as pool:
            looks = list(pool.map(_Examiner(data), range(len(data))))
        for look in looks:
            findings += look.findings
            if look.content:
                seen[look.content].append((data.split, look.record, look.file))
        summaries[data.split] = summary = _summary(data, [look.target for look in looks])
        findings += _empty_classes(data, summary)
    findings += _repeats(seen)
    findings.sort(key=lambda finding: (_RANK[finding.severity], finding.kind))
    return Report(str(source) if isinstance(source, (str, Path)) else "samples", findings, summaries)


def _any_split(source: str | Path | list[Sample], splits: Iterable[str] | None) -> Source:
    """The first split that opens: not every data set has a train split."""
    wanted = list(splits) if splits is not None else ["train", "val", "test", "trainval"]
    if not wanted:
        raise DataError(f"{source}: no split to examine")
    problem: DataError | None = None
    for name in wanted:
        try:
            return open_data(source, name, on_bad="keep")
        except DataError as error:
            if "there is no split" not in str(error) or splits is not None:
                raise
            problem = problem or error
    raise problem or DataError(f"{source}: no split to examine")


class _Look(NamedTuple):
    """What one look at a record gave; `content` is the hash of the picture, "" if there is none or it cannot be read."""

    record: str
    file: str
    findings: list[Finding]
    content: str = ""
    target: Target | None = None


class _Examiner:
    """Looks at one record of a data set: its file where there is one, else its pixels."""

    def __init__(self, data: Source) -> None:
        self.data = data

    def __call__(self, index: int) -> _Look:
        record, file = self.data.id_of(index), self.data.file_of(index)
        if file is not None:
            return self._encoded(index, record, str(file), file.read_bytes, file.suffix.lower())
        if hasattr(self.data, "raw_of"):  # a picture's file inside a shard
            shards: Any = self.data
            return self._encoded(index, record, "", lambda: shards.raw_of(index).picture, "")
        sample = self.data[index]
        picture = sample.inputs.get("image")
        if not isinstance(picture, Picture):
            return _Look(record, "", [], "", sample.target)
        pixels = picture.pixels.contiguous().numpy()
        return _Look(record, "", [], digest(repr(pixels.shape), pixels), sample.target)

    def _encoded(self, index: int, record: str, file: str, read: Callable[[], bytes], suffix: str) -> _Look:
        """The look at a picture's file, of which `read` gives the bytes; `suffix` is that of its name, "" if it does not matter."""
        found: list[Finding] = []

        def note(kind: str, severity: Severity, detail: str) -> None:
            found.append(Finding(kind, severity, record, file, detail, self.data.split))

        target = None
        try:
            target = self.data.target_of(index) if self.data.boxes is None else None
            raw = read()
            size = decode(raw, file or record).size
            head = header(raw, file or record)
        except (ImageError, OSError) as error:
            note("unreadable picture", "error", str(error))
            return _Look(record, file, found, "", target)
        except DataError:  # a sample without target or bytes: among the reader's notes
            return _Look(record, file, found, "", target)
        if head.orientation != 1:
            note("EXIF rotation", "info", f"orientation {head.orientation} is applied when the picture is read")
        if suffix and suffix not in _SUFFIXES.get(head.format, {suffix}):
            note("wrong extension", "warning", f"the name ends in {suffix!r} but the file is {head.format}")
        stated = np.asarray(getattr(self.data, "sizes", np.zeros((0, 2))))
        if len(stated) and stated[index].all() and tuple(stated[index].tolist()) != size:
            words = f"the annotations say {stated[index][1]}x{stated[index][0]}, the picture has {size[1]}x{size[0]}"
            turned = " after its EXIF rotation" if head.orientation in (5, 6, 7, 8) else ""
            note("size mismatch", "error", words + turned)
        return _Look(record, file, found, digest(raw), target)


def _repeats(seen: dict[str, list[tuple[str, str, str]]]) -> Iterator[Finding]:
    """The same content more than once: across splits it makes scores too good, within one it only counts twice."""
    for places in seen.values():
        split, record, _ = places[0]
        for other, twin, file in places[1:]:
            kind = "duplicate picture across splits" if other != split else "duplicate picture"
            yield Finding(kind, "warning", twin, file, f"the same content as {record} of {split}", other)


def _summary(data: Source, targets: list[Target | None]) -> Summary:
    counts = np.zeros(len(data.names), np.int64)
    values: Counter[int] = Counter()
    table = data.boxes
    if table is not None:
        counts += np.bincount(table.labels[table.labels >= 0], minlength=len(counts))[: len(counts)]
        return Summary(len(data), _named(data, counts))
    for target in targets:
        if isinstance(target, (Classes, Instances)):
            labels = target.labels[(target.labels >= 0) & (target.labels < len(counts))]
            counts += np.bincount(labels.numpy(), minlength=len(counts))
        elif isinstance(target, LabelMap):
            found, times = torch.unique(target.labels, return_counts=True)
            values.update(dict(zip(found.tolist(), times.tolist())))
            inside = (found >= 0) & (found < len(counts)) & (found != target.ignore)
            counts[found[inside].numpy()] += times[inside].numpy()
    return Summary(len(data), _named(data, counts), dict(values))


def _named(data: Source, counts: np.ndarray) -> dict[str, int]:
    return {name: int(count) for name, count in zip(data.names, counts)}


def _empty_classes(data: Source, summary: Summary) -> Iterator[Finding]:
    for name, count in summary.objects.items():
        if count == 0:
            yield Finding("empty class", "warning", "", "", f"class {name!r} has no example", data.split)
