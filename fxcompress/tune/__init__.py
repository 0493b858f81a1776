"""After training, with data: the roundings, biases and scales of a quantized graph follow its float original."""
