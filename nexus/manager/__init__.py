"""The control plane: REST API, desired state in SQL, and the pipelines that see to it."""
