"""What answers each route, one module per noun. Who may ask is in the table, not here."""
