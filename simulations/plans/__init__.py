"""Plans and costs of experiments and ledgers, as the commands print them."""
