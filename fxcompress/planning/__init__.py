"""DECIDE: from open decisions to the plan: prices, the solver's answer, the lock file."""
