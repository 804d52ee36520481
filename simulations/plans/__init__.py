"""What experiments and ledgers plan and cost, as the commands print it."""
