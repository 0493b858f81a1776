"""Operators: the table of what fxcompress knows of each, and the operators of a graph by their rows."""
