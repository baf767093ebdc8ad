"""Every byte: the values by themselves, and against the weights that they were made of."""
