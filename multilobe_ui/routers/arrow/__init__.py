"""Arrow: the lobes' own singular vectors weigh them for every token and layer."""
