"""Build the wheel, look into it, and use it in an environment of its own: no network, no home, another folder.

The environment holds the wheel alone; its dependencies are borrowed from the one that runs this script, so that nothing is
downloaded. Prints what it did; exit code 1 when something is wrong.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 12_000_000  # bytes of the whole wheel
SEALED = '''
"""No socket of this environment reaches anything."""
import socket


def refused(*arguments, **keywords):
    raise OSError("the wheel test allows no network")


socket.socket.connect = refused
socket.socket.connect_ex = refused
socket.create_connection = refused
socket.getaddrinfo = refused
'''


class Failure(Exception):
    """Something about the wheel is wrong."""


def need(condition: bool, sentence: str) -> None:
    if not condition:
        raise Failure(sentence)


def call(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)


def build(folder: Path) -> Path:
    done = call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    need(done.returncode == 0, f"the build failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    wheels = list(folder.glob("*.whl"))
    need(len(wheels) == 1, f"expected one wheel, found {[w.name for w in wheels]}")
    return wheels[0]


def inspect(wheel: Path) -> list[str]:
    """The wheel's files, after checking that everything is there and nothing else."""
    need(wheel.name.endswith("-py3-none-any.whl"), f"expected a py3-none-any wheel, found {wheel.name}")
    need(wheel.stat().st_size <= LARGEST, f"{wheel.stat().st_size / 1e6:.1f} MB, at most {LARGEST / 1e6:.0f} MB were expected")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = next(name for name in names if name.endswith(".dist-info/WHEEL"))
        need("Root-Is-Purelib: true" in archive.read(record).decode(), "the wheel is not marked as pure Python")
    tracked = call("git", "-C", ROOT, "ls-files", "src/opticus").stdout.split()
    absent = [name for name in tracked if (ROOT / name).is_file() and name.removeprefix("src/") not in names]
    need(not absent, f"not in the wheel: {', '.join(absent[:10])}")
    for pattern in (r"opticus/parity/\w+\.json", r"opticus/weights/labels/\w+\.txt", r".*\.dist-info/licenses/LICENSE",
                    r".*\.dist-info/licenses/NOTICE"):  # fmt: skip
        need(any(re.fullmatch(pattern, name) for name in names), f"the wheel has no {pattern}")
    odd = [
        name for name in names if name.endswith((".pyc", ".so", ".pyd")) or not re.match(r"opticus(/|-[\d.]+\.dist-info/)", name)
    ]
    need(not odd, f"does not belong into the wheel: {', '.join(odd[:10])}")
    return names


def environment(wheel: Path, folder: Path) -> Path:
    """A virtual environment with the wheel, closed to the network; returns its Python."""
    made = call(sys.executable, "-m", "venv", "--without-pip", folder)
    need(made.returncode == 0, f"no virtual environment could be made: {made.stderr}")
    home = folder / ("Scripts" if os.name == "nt" else "bin")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    python = home / ("python.exe" if os.name == "nt" else "python")
    done = call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--disable-pip-version-check",
                wheel)  # fmt: skip
    need(done.returncode == 0, f"the wheel cannot be installed: {done.stdout}{done.stderr}")
    # as plain lines the borrowed folders bring packages only: an editable opticus in them stays out
    borrowed = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    (site / "sitecustomize.py").write_text(SEALED)
    return python


class User:
    """Somebody who uses the installed package from another folder, with a home that cannot exist."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder
        (folder / "no-home").write_text("a file, so that no folder can be made in it")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "XDG_", "OPTICUS", "HF_", "MPL", "VIRTUAL_ENV"))}
        self.variables = {**kept, "HOME": str(folder / "no-home" / "x"), "USERPROFILE": str(folder / "no-home" / "x"),
                          "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip

    def python_says(self, code: str) -> str:
        done = call(self.python, "-c", code, cwd=self.folder, env=self.variables)
        need(done.returncode == 0, f"{code!r} failed: {done.stderr[-1500:]}")
        return done.stdout.strip()

    def runs(self, *words: Any, code: int = 0) -> str:
        done = call(self.python, "-m", "opticus", *words, cwd=self.folder, env=self.variables)
        line = f"opticus {' '.join(str(word) for word in words)}"
        need(
            done.returncode == code,
            f"{line}: exit code {done.returncode}, expected {code}\n{done.stdout[-800:]}{done.stderr[-1500:]}",
        )
        print(f"  {line}: {(done.stdout.strip().splitlines() or [''])[0][:90]}")
        return done.stdout


def use(user: User) -> None:
    """The verbs that work without any download."""
    where = user.python_says("import opticus; print(opticus.__file__)")
    need(Path(where).is_relative_to(user.python.parents[1]), f"another opticus was imported: {where}")
    refused = user.python_says(
        "import urllib.request\ntry: urllib.request.urlopen('http://127.0.0.1:9', timeout=1)\nexcept OSError as e: print(e)"
    )
    need("allows no network" in refused, "the environment is not closed to the network")
    user.runs("models")
    user.runs("info", "lenet/5")
    user.runs("export-data", "scenes", "coco", user.folder / "data", "limit=1")
    user.python_says("import opticus; opticus.create('lenet/5').save('lenet.safetensors')")
    found = json.loads(user.runs("identify", "lenet.safetensors", "--json"))
    need(found["name"] == "lenet/5", f"identify says {found}")
    user.runs("train", "lenet/5", "data=digits", "steps=2", "evaluate_every=0", "quiet=true", f"out={user.folder / 'run'}")
    need((user.folder / "run" / "report.html").is_file(), "the run has no report")
    shipped = user.python_says(
        "from opticus import zoo\n"
        "for stem in zoo.paper_files():\n"
        "  for key, row in zoo.paper(stem).WEIGHTS.items():\n"
        "    if row.url.startswith('package:'): print(f'{stem}/{key}')"
    ).split()
    scene = next((user.folder / "data" / "images" / "test").glob("*.png"))
    for name in shipped:
        user.runs("predict", name, scene, f"out={user.folder / 'found'}")
        need((user.folder / "found" / scene.name).is_file(), f"{name} drew no picture")
    print(f"  weights that ship with the package: {', '.join(shipped) or 'none'}")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="opticus-wheel-") as temporary:
        folder = Path(temporary).resolve()
        try:
            wheel = build(folder)
            names = inspect(wheel)
            print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.2f} MB")
            user = folder / "user"
            user.mkdir()
            use(User(environment(wheel, folder / "environment"), user))
        except Failure as failure:
            print(f"check_wheel: {failure}", file=sys.stderr)
            return 1
    print("the wheel works on its own: no network, no home, another folder")
    return 0


if __name__ == "__main__":
    sys.exit(main())
