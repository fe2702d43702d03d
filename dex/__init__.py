"""Portrait animation with disentangled control of head pose and facial expression (DeX-Portrait, CVPR 2026)."""

__version__ = "0.1.0"
