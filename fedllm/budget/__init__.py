"""What a silo may spend: its plan, its limits, its account, and the noise that keeps to them."""
