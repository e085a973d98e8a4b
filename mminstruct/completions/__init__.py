"""Requests -> completions, once and for all: client, store, limits and budget."""
