"""Observers, one file for each way to a range, and the histogram that most of them read."""
