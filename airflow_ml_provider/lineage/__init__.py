"""OpenLineage without Airflow: names and facets for what a stage read and wrote, and the graph that the events tell.

`naming` says what a dataset is called, `facets` turns a stage's result into datasets and facets as plain dictionaries,
`graph` reads emitted events back and walks them. The JSON Schemas of this package's own facets are in `schemas`.
"""
