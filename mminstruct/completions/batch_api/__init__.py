"""Requests answered through the Batch API of an OpenAI-compatible server."""
