"""`airflow ml …`."""
