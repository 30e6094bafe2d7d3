"""Which engines are installed here: what the suites of batch scoring and of training on every engine are marked with."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from ml.engines import NEEDS


def needs(engine: str) -> list[pytest.MarkDecorator]:
    package = NEEDS.get(engine)
    absent = package is not None and importlib.util.find_spec(package) is None
    no_java = engine == "spark" and shutil.which("java") is None
    why = f"package {package} is not installed here" if absent else "there is no java here (Debian: default-jre-headless)"
    skip = pytest.mark.skipif(absent or no_java, reason=f"{why}: `make test-engines` runs this")
    return [] if engine == "local" else [skip, pytest.mark.engines]
