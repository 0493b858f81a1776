"""Report: rows, terminal table and JSON of what was done."""
