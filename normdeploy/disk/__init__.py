"""Everything that goes to the disk or comes from it under a name that someone else could have given."""
