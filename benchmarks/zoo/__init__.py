"""The zoo: many models with random weights, captured and checked."""
