"""The same model as a stock BentoML service (see `ops.serving_peers`); ``bentoml serve ops.serving_bento:Plain``."""

from __future__ import annotations

import bentoml

from ops import serving_peers

_model = serving_peers.Model()
Row = _model.row


@bentoml.service(workers=1, traffic={"timeout": 60})
class Plain:
    """ONNX Runtime; the caller sends the features."""

    @bentoml.api
    async def predict(self, row: Row) -> serving_peers.Given:  # type: ignore[valid-type]  # made at run time
        return _model.answer(vars(row))
