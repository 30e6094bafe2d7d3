"""Becomes the ``sitecustomize`` of every process of a Bento under test, which then is as in an environment of its own.

What no requirement of the Bento brings cannot be imported (``foreign`` beside this file lists it), nor can any checkout of the
repository. What is imported, and from where, is written down beside this file, one file for each process.
"""

import importlib.machinery
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
FOREIGN = set((HERE / "foreign").read_text().split())


class Watched:
    """A finder that finds nothing: Python asks it before all others."""

    seen: set[str] = set()

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        top = name.partition(".")[0]
        if top in FOREIGN:
            raise ModuleNotFoundError(f"no requirement of the Bento brings {top!r}", name=name)
        if top not in cls.seen:
            cls.seen.add(top)
            spec = importlib.machinery.PathFinder.find_spec(top)
            with (HERE / f"imported.{os.getpid()}").open("a") as file:
                file.write(f"{top} {spec.origin if spec else None}\n")


sys.path[:] = [entry for entry in sys.path if not Path(entry, "ml", "serving").is_dir()]
if importlib.machinery.PathFinder.find_spec("ml"):
    raise SystemExit("a checkout of the repository can still be imported")  # site reports other exceptions, and goes on
sys.meta_path.insert(0, Watched)
