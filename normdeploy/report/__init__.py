"""The report: one schema that is the truth, and two views that only render it."""
