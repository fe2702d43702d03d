"""How disentangled a model is, measured on synthetic heads: what their pictures show is read back and compared."""
