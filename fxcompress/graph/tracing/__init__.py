"""Tracing: the first way of capture, the model's Python run once on proxies."""
