"""The promise of DESIGN 5: a million boxes in at most 100 MB, with a peak of at most three times the file; here a tenth of it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

COUNT = 100_000
PROGRAM = """
import gc, json, resource, sys, threading, time
from pathlib import Path
import hotcoco.mask
from opticus.data import coco
from opticus.data.findings import check_cheap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

gc.collect()
before = resident()
top, done = [0], threading.Event()

def watch():
    while not done.wait(0.002):
        top[0] = max(top[0], resident())

watcher = threading.Thread(target=watch)
watcher.start()
data = coco.read(Path(sys.argv[1]), "train")
done.set()
watcher.join()
peak = top[0] - before  # ru_maxrss would include the parent process
gc.collect()
after = resident() - before
start = time.process_time()
found = len(check_cheap(data))
seconds = time.process_time() - start
print(json.dumps([len(data), len(data.boxes), after, peak, found, seconds, data.boxes.boxes[7].tolist(), data.boxes.nbytes]))
"""


@pytest.mark.timeout(120)
def test_flat_arrays_keep_memory_small(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    images = COUNT // 7
    boxes = np.round(rng.uniform(1, 200, (COUNT, 4)), 2)
    owners = np.sort(rng.integers(0, images, COUNT))
    Image.new("RGB", (4, 4)).save(tmp_path / "000000000000.jpg")
    with open(tmp_path / "train.json", "w") as out:
        out.write('{"info": {}, "annotations": [')
        for i in range(COUNT):
            x, y, w, h = boxes[i].tolist()
            row = f'{{"segmentation": [[{x}, {y}, {x + w:.2f}, {y}, {x + w:.2f}, {y + h:.2f}, {x}, {y + h:.2f}]], "area": {w * h:.3f}, '
            out.write(f'{"," if i else ""}{row}"iscrowd": 0, "image_id": {owners[i]}, "bbox": [{x}, {y}, {w}, {h}], ')
            out.write(f'"category_id": {1 + i % 80}, "id": {i + 1}}}')
        out.write('], "images": ')
        json.dump([{"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640} for i in range(images)], out)
        out.write(', "categories": ')
        json.dump([{"id": i, "name": f"class {i}"} for i in range(1, 81)], out)
        out.write("}")
    size = os.path.getsize(tmp_path / "train.json")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "train.json")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-500:]
    pictures, rows, resident, peak, found, seconds, box, arrays = json.loads(ran.stdout)
    assert (pictures, rows, found) == (images, COUNT, 0)
    x, y, w, h = boxes[7]
    assert np.allclose(box, [x, y, x + w, y + h], atol=1e-3)
    fixed = 8e6  # the two chunks of text and the allocator's own pages do not grow with the file
    assert resident <= COUNT * 100 + fixed
    assert peak <= 3 * size
    assert arrays <= COUNT * 60 and seconds < 2
