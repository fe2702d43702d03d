"""Fixtures shared by all tests: where real clips and pretrained networks lie, if they do."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The material of tests on real faces is not part of the project: it lies beside the checkout or where this points to.
SHARED = Path(os.environ.get("DEX_TEST_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def _folder(path: Path) -> Path:
    if not path.is_dir():
        pytest.skip(
            f"{path.name}: no such folder in {SHARED.name}/ beside the checkout; set DEX_TEST_SHARED to run this"
        )
    return path


@pytest.fixture(scope="session")
def talking_heads() -> Path:
    """Real clips, portraits and awkward files: videos/, portraits/, hard/."""
    return _folder(SHARED / "data" / "talking_heads")


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """Pretrained networks by their registered file names."""
    return _folder(SHARED / "weights")


@pytest.fixture
def weights_env(weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, announced to the program as a user would."""
    monkeypatch.setenv("DEX_WEIGHTS", str(weights_dir))
    return weights_dir


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that the last of two workers is not left alone with one of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def _handlers() -> Iterator[None]:
    """Those of the tests come back."""
    from dex.callbacks.checkpoints import SIGNALS  # seconds to import, which few tests need

    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell's background ignores it
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
