"""Measures of generated videos, as torchmetrics: sums and counts, right however a set is split over processes.

    pictures.py        PSNR, SSIM of frames against the truth
    distributions.py   Fréchet and kernel distance of two sets of features (FID, KID and FVD but for their networks)
    motion.py          AED and APD: expression and pose of the output against their drivers; fail rate
    influence.py       disentanglement: influence matrix, leak, selectivity, swap error

They take what extractors have read, numbers and not files, and refuse what cannot be measured with `MetricError`.
"""


class MetricError(ValueError):
    """Input that cannot be measured; the message says what it is and what is needed."""
