"""Files appear whole or not at all."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dex.files import replacing, write_atomic


def test_write_atomic_keeps_the_old_file_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(target, b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_write_atomic_under_kill_9_leaves_a_whole_file(tmp_path: Path) -> None:
    target, size = tmp_path / "file", 8 << 20
    program = (
        "import itertools, sys; from pathlib import Path; from dex.files import write_atomic\n"
        f"for i in itertools.count(): write_atomic(Path(sys.argv[1]), bytes([i % 256]) * {size})"
    )
    for delay in (0.02, 0.05):
        with subprocess.Popen([sys.executable, "-c", program, str(target)]) as process:
            while not target.exists():
                assert process.poll() is None
                time.sleep(0.005)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        data = target.read_bytes()
        assert len(data) == size
        assert data == data[:1] * size
        target.unlink()


def test_what_fails_while_it_is_written_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"whole")
        assert not (tmp_path / "file").exists()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"whole")]
