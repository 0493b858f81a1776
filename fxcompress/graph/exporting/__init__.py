"""Exporting: the second way of capture, torch.export with its operators lifted to those that tracing gives."""
