"""Probabilistic sparse coding by expectation truncation: a state table, a rule of superposition, and annealed EM."""
