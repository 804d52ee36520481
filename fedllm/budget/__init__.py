"""A silo's privacy spending: plan, limits, account, and calibrated noise."""
