"""The child process of a rebuild: raw data in, graph out. Knows nothing of the model that it is compared with.

Run as a file, so that it works with an older tree of the code, too; it uses only what that tree must have had to train:
``python -P remake.py order.json outcome.json`` with the tree on ``PYTHONPATH`` and every EVERGREEN_* place a temporary one.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any


def remake(order: dict[str, Any]) -> dict[str, Any]:
    """Computes features from raw data, fits the recorded recipe on them, and exports the graph.

    Args:
        order: root (of the restored raw data), snapshot, window and learned (start, end), as_of, recipe, rounds, and the digests
            code and feature_code that are wanted.

    Returns:
        code and feature_code as they are here; if they are the wanted ones, also model (SHA-256 of the graph), features (digest
        of the feature set) and rows (that the model learned from).
    """
    from ml import store
    from ml.config import load_params
    from ml.features import stored
    from ml.features.definitions import code_digest, load_module
    from ml.packaging import lineage
    from ml.packaging.graph import export
    from ml.refs import Recipe, SnapshotRef, Window
    from ml.training.fit import fit_model

    params, snapshot = load_params(), SnapshotRef.model_validate(order["snapshot"])
    code = {"code": lineage.code_digest(), "feature_code": code_digest(params)}
    if any(code[name] != order[name] for name in code):
        return code
    as_of = datetime.fromisoformat(order["as_of"])
    made = stored.build(Path(order["root"]), snapshot, Window.model_validate(order["window"]), as_of)
    learned, recipe = Window.model_validate(order["learned"]), Recipe.model_validate(order["recipe"])
    if order.get("workers", 1) > 1:  # as many as then: EVERGREEN_TRAIN_WORKERS
        from ml.training.spread.fit import fit

        fitted = fit(made, learned, load_module(params).learned, params, recipe, order["rounds"]).fitted
    else:
        fitted = fit_model(stored.read(made), learned, load_module(params).learned, params, recipe, order["rounds"])
    return code | {"model": store.sha256(export(fitted)), "features": made.digest, "rows": fitted.learned.rows}


if __name__ == "__main__":
    order_file, outcome_file = (Path(argument) for argument in sys.argv[1:])
    outcome_file.write_text(json.dumps(remake(json.loads(order_file.read_text()))))
