"""Completions -> rows: columns, requests, `Dataset.map`, and what became of each request."""
