"""High availability: managed resources, rules and groups, and the manager that follows them."""
