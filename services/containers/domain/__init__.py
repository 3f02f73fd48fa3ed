"""What a stack may be and do: states, templates, compose files and their policy, archives; pure."""
