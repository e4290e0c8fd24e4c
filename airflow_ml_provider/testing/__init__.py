"""What users need to test their own DAGs and runtimes; nothing here is loaded by the provider itself.

* `airflow_ml_provider.testing.fixtures`: pytest fixtures for DAGs and stages.
* `airflow_ml_provider.testing.context`: the context of a task without a running Airflow.
* `airflow_ml_provider.testing.contracts`: what every stage and every runtime must fulfil.
* `airflow_ml_provider.testing.controllers`: TrainJobs and RayJobs on an API server without their controllers.
* `airflow_ml_provider.testing.lineage`: are these events valid OpenLineage?
"""
