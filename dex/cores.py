"""How many processor cores there are for this process; torch is not needed to say."""

import os


def usable_cores() -> int:
    """Fewer than the machine's under Slurm or taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
