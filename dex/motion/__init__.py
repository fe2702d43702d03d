"""Stage 1: the disentangled motion trainer (DeX-Portrait, sec. 3.1)."""
