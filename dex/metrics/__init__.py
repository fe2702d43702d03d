"""Measures of generated videos. Pictures, distributions, motion and background are torchmetrics: sums and counts, right
however a set is split over processes. Influence, probes and statistics are functions: of sums over tuples, which an
interval resamples, and of the codes and values of a whole set.

    pictures.py        PSNR, SSIM of frames against the truth
    distributions.py   Fréchet and kernel distance of two sets of features (FID, KID and FVD but for their networks)
    motion.py          AED and APD: expression and pose of the output against their drivers; fail rate
    influence.py       disentanglement: influence matrix, leak, selectivity, swap error
    background.py      disentanglement: what an edit of the expression moves where no head is
    probes.py          disentanglement: how much of the pose, or who it is, an expression code tells
    statistics.py      intervals and tests whose unit is the clip or the identity
    extractors/        the networks that read pictures: faces, identity, perceptual distance, features

The measures take what extractors have read, numbers and not files, and refuse what cannot be measured with
`MetricError`.
"""


class MetricError(ValueError):
    """Input that cannot be measured; the message says what it is and what is needed."""
