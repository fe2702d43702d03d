"""MediaPipe beside a Trainer in one process."""

import subprocess
import sys
from pathlib import Path

AFTER_A_TRAINER = """
import signal
import sys
from dex.animation.footage import read_picture
from dex.faces.detect import FaceTracker

image = read_picture(sys.argv[1])
with FaceTracker() as tracker:
    signal.signal(signal.SIGPROF, signal.getsignal(signal.SIGPROF))  # as a Trainer's end does with every signal
    for _ in range(50):
        assert tracker.track(image).face is not None
"""


def test_a_trainers_end_does_not_kill_the_process(talking_heads: Path, weights_env: Path) -> None:
    """The fifty frames take seconds of the tracker's threads: any profiler's timer would have gone off."""
    picture = talking_heads / "portraits" / "hellomeme_harris.jpg"
    ended = subprocess.run([sys.executable, "-c", AFTER_A_TRAINER, picture], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-1000:]
