"""Readers of records: CSV, JSON, Parquet, hub data sets, the embedded tweets."""
