"""The deploy stage: serve a version of a model, and move traffic from one version to another."""
