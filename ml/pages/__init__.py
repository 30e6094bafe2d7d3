"""What the Models pages show, gathered: from ledger, deployment manifest, the monitoring's documents and folder listings alone.

Pure: no web framework, no Airflow, no MLflow client, and of what is heavy only the axis ticks of Matplotlib. A page costs the
same number of queries however long the history is, and reads as much of it as it shows.
"""
