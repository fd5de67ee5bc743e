"""The proof: every operator that a plan touches is seen to commute with the maps around it."""
