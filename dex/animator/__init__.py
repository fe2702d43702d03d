"""Stage 2: the diffusion animator on Stable Diffusion 1.5's UNet (DeX-Portrait, sec. 3.2)."""
