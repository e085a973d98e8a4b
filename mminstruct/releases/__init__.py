"""Rows -> a dataset repository: Parquet, card, notices, Croissant, the Hub."""
