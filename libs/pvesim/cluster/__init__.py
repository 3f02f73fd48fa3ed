"""The cluster: nodes, resources, tasks, identifiers and pools."""
