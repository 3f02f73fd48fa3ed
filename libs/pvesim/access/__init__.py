"""Who may do what: users, tickets, API tokens, roles and access control lists."""
