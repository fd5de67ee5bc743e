"""Operators in float64, for the proof: what the rules of the fold are checked against."""
