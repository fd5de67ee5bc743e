"""Which rows of a batch each value of a graph depends on, by its operators alone and whatever the values are."""
