"""Reference repositories that are not pip packages, imported from clones below the folder OPTICUS_REFERENCES."""

import contextlib
import os
import sys
from pathlib import Path


@contextlib.contextmanager
def clone(folder):
    """Make a clone's folder importable meanwhile; afterwards its modules are forgotten, as other repositories use the same names."""
    root = Path(os.environ.get("OPTICUS_REFERENCES", ".")) / folder
    if not root.is_dir():
        raise SystemExit(f"{root} does not exist: set OPTICUS_REFERENCES to the folder of the clones named in {folder}'s adapter")
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        loaded = {name: sys.modules[name] for name in set(sys.modules) - before}
        places = {n: [getattr(m, "__file__", None) or "", *getattr(m, "__path__", [])] for n, m in loaded.items()}
        for name, where in places.items():
            if any(str(place).startswith(str(root)) for place in where):
                del sys.modules[name]
