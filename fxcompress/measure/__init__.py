"""ASK: what the model and the machine say: ranges, sensitivities, costs, latency tables."""
