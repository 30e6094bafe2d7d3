"""OpenLineage: the datasets and facets of our tasks. Airflow's provider makes and sends the events, and asks here what a task handled.

Found by ``AIRFLOW__OPENLINEAGE__EXTRACTORS=dags.lineage.StepExtractor``; nothing else imports this module, so that a deployment that
sends no lineage does not pay for it.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.openlineage.extractors.base import BaseExtractor, OperatorLineage
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import RunFacet, dataset_version_dataset

from ml import provenance
from ml.provenance import Dataset


class StepExtractor(BaseExtractor):
    """Of every task that is a Python function, as ours are."""

    @classmethod
    def get_operator_classnames(cls) -> list[str]:
        return ["_PythonDecoratedOperator", "DecoratedSensorOperator"]

    def _execute_extraction(self) -> OperatorLineage:
        return self._told()

    def extract_on_complete(self, task_instance: Any) -> OperatorLineage:
        from airflow.sdk.execution_time.xcom import XCom

        return self._told(task_instance, XCom.get_value(ti_key=task_instance, key="return_value"))

    def extract_on_failure(self, task_instance: Any) -> OperatorLineage:
        return self._told(task_instance)

    def _told(self, task_instance: Any = None, outcome: Any = None) -> OperatorLineage:
        arguments = [*self.operator.op_args, *self.operator.op_kwargs.values()]
        if task_instance and "version" in (context := task_instance.get_template_context())["params"]:
            from dags.common import occasion

            arguments.append(occasion(context=context).asked.get("version"))  # `release` has it from the asset's event
        handled = provenance.handled(self.operator.task_id, arguments, outcome)
        return OperatorLineage(
            inputs=[InputDataset(provenance.namespace(), d.name, facets=_version(d)) for d in handled.inputs],
            outputs=[OutputDataset(provenance.namespace(), d.name, facets=_version(d)) for d in handled.outputs],
            run_facets={name: _facet(name, values) for name, values in handled.facets.items()},
        )


def _version(dataset: Dataset) -> dict[str, Any]:
    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(dataset.version)} if dataset.version else {}


def _facet(name: str, values: dict[str, Any]) -> Any:
    facet = RunFacet(producer="urn:evergreen").with_additional_properties(**values)
    facet._schemaURL = f"{provenance.SCHEMA}#/$defs/{name}"
    return facet
