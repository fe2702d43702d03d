"""Two processes, sharded or not, train as one does; what they save, any number of ranks loads."""

import json
import multiprocessing
import socket
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dex.checkpoint import stored
from dex.motion.encoders import save_generator
from dex.motion.generator import MotionGenerator
from tests.distributed.training import rank_process
from tests.motion.conftest import TINY

# Ranks are forked from a process that has imported everything and started nothing: some sixty imports less.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.distributed.training"])
# Share of the way trained by which runs alike may be apart: with the eps below 7e-6 for stage 1; with Adam's own 0.008
# for stage 1 and 1e-5 for stage 2, with half of the samples 0.57, 0.71.
AS_ONE = 0.05
# Of the monitor's figures: what is read from the noise of an untrained network hangs on its last digits.
SMOOTH = (
    "probe_r2/pose_from_expression", "probe_r2/identity_from_expression", "code_deviation", "background_drift"
)  # fmt: skip
# Of training: stage 1, by Adam and by Muon, which is not for sharded weights, and the two phases of stage 2.
STRATEGIES = {
    "motion": ("ddp", "fsdp", "hybrid"), "muon": ("ddp",), "image": ("ddp", "fsdp"), "video": ("ddp", "fsdp")
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread_a_rank() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # before the server starts: it reads it once
        yield


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("stage1")
    torch.manual_seed(0)
    save_generator(folder, TINY, MotionGenerator(TINY).state_dict(), {})
    return str(folder / "encoders")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train(ranks: int, folder: Path, context: BaseContext = SERVER, **asked: Any) -> list[dict[str, Any]]:
    """What each rank wrote."""
    asked = {"ranks": ranks, "folder": str(folder), "steps": 10, **asked}
    launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    launched = [launch | {"LOCAL_RANK": str(rank)} if ranks > 1 else {} for rank in range(ranks)]
    running = [context.Process(target=rank_process, args=(asked, variables)) for variables in launched]
    try:
        for process in running:
            process.start()
        for process in running:
            process.join(timeout=500)
        ended = [process.exitcode for process in running]
    finally:  # where one failed, the others wait for it
        for process in running:
            if process.pid:
                process.kill()
    failures = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("failure-*.txt")))
    assert ended == [0] * ranks, f"exit codes {ended} (None: still running after 500 s)\n{failures}"
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def mean_losses(ranks: list[dict[str, Any]]) -> list[float]:
    return [sum(losses) / len(losses) for losses in zip(*(rank["losses"] for rank in ranks), strict=True)]


def apart(run: Path, reference: Path) -> float:
    """Distance of two moving averages, as a share of how far training has moved the second."""
    a, b, start = (
        torch.cat([tensor.double().flatten() for _, tensor in sorted(load_file(path).items())])
        for path in (run / "average.safetensors", reference / "average.safetensors", reference / "start.safetensors")
    )
    return ((a - b).norm() / (b - start).norm()).item()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STRATEGIES)
def test_two_ranks_train_as_one_process_on_all_their_samples(stage: str, encoders: str, tmp_path: Path) -> None:
    # Adam's own 1e-8 turns what rounding leaves of a gradient of zero into a whole step, another on each processor.
    asked: dict[str, Any] = {"stage": stage, "encoders": encoders, "eps": 1e-3}
    (one,) = train(1, tmp_path / "one", strategy="single", virtual=2, **asked)
    assert len(set(one["losses"])) == 10
    for strategy in STRATEGIES[stage]:
        two = train(2, tmp_path / strategy, strategy=strategy, validate=1, **asked)
        assert mean_losses(two) == pytest.approx(one["losses"], rel=1e-4), strategy
        assert apart(tmp_path / strategy, tmp_path / "one") < AS_ONE, strategy
        assert two[0]["output"] == two[1]["output"] == pytest.approx(one["output"], rel=1e-3, abs=0.1), strategy
        assert two[0]["keys"] != two[1]["keys"], strategy
        assert [a + b for a, b in zip(two[0]["keys"], two[1]["keys"], strict=True)] == one["keys"], strategy


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["motion", "image"])
def test_what_two_ranks_saved_one_and_four_load(stage: str, encoders: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"stage": stage, "encoders": encoders, "strategy": "fsdp"}
    two = train(2, tmp_path / "two", steps=4, **asked)
    names = stored(tmp_path / "two" / "last")
    assert not any("_frozen" in name or "perceptual" in name or "codec" in name for name in names)
    assert len(list((tmp_path / "two" / "last").glob("*.safetensors"))) == 2
    for ranks, strategy in ((4, "fsdp"), (1, "fsdp"), (1, "single")):
        again = train(
            ranks,
            tmp_path / f"{strategy}{ranks}",
            steps=4,
            resume=str(tmp_path / "two" / "last"),
            **(asked | {"strategy": strategy}),
        )
        for rank in again:
            assert rank["losses"] == []  # it was at its end
            assert rank["average"] == pytest.approx(two[0]["average"], rel=1e-6, abs=1e-6)
            assert rank["output"] == pytest.approx(two[0]["output"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["motion", "image"])
def test_a_sharded_run_resumes_exactly_and_other_ranks_take_up_the_data(
    stage: str, encoders: str, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"stage": stage, "encoders": encoders, "strategy": "fsdp", "same_noise": False}
    undisturbed = train(2, tmp_path / "whole", steps=8, **asked)
    first = train(2, tmp_path / "first", steps=5, **asked)
    last = str((tmp_path / "first" / "last").resolve())
    # Of interpreters of their own, which order sets of strings in another way each.
    rest = train(2, tmp_path / "rest", multiprocessing.get_context("spawn"), steps=8, resume=last, **asked)
    for rank in (0, 1):
        assert first[rank]["losses"] + rest[rank]["losses"] == undisturbed[rank]["losses"]
        assert first[rank]["keys"] + rest[rank]["keys"] == undisturbed[rank]["keys"]
    assert rest[0]["average"] == undisturbed[0]["average"]
    (alone,) = train(1, tmp_path / "alone", steps=8, resume=last, **(asked | {"strategy": "single"}))
    expected = [keys for pair in zip(*(rank["keys"] for rank in undisturbed), strict=True) for keys in pair]
    seen = [keys for pair in zip(*(rank["keys"] for rank in first), strict=True) for keys in pair]
    assert seen + alone["keys"] == expected[:13]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["motion", "image"])
def test_the_monitor_reads_the_same_on_one_rank_and_on_two_and_changes_no_loss(
    stage: str, encoders: str, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"stage": stage, "encoders": encoders, "steps": 2}
    (one,) = train(1, tmp_path / "one", strategy="single", virtual=2, monitor=True, **asked)
    (without,) = train(1, tmp_path / "without", strategy="single", virtual=2, **asked)
    assert one["losses"] == without["losses"]
    assert {"I_pp", "I_ee", "I_pe", "I_ep", "probe_r2/pose_from_expression"} <= one["figures"].keys()
    for strategy in ("ddp", "fsdp"):
        first, second = train(2, tmp_path / strategy, strategy=strategy, monitor=True, **asked)
        assert second["figures"] == {}
        assert first["figures"].keys() == one["figures"].keys()
        for name in SMOOTH:
            assert first["figures"][name] == pytest.approx(one["figures"][name], rel=0.01, abs=0.01), (strategy, name)


@pytest.mark.slow
def test_in_bf16_two_ranks_train_validate_and_show_what_they_do(tmp_path: Path) -> None:
    """Sharded weights are gathered in bf16, which only autocast knows how to meet, also outside the training step.
    Stage 1 only: a CPU's autocast, unlike a GPU's, leaves layer_norm of float32 with bf16 weights to fail."""
    asked: dict[str, Any] = {"stage": "motion", "steps": 4, "monitor": True, "validate": 1}
    asked |= {"precision": "bf16-mixed", "output": False}
    losses = {
        strategy: mean_losses(train(2, tmp_path / strategy, strategy=strategy, **asked)) for strategy in ("ddp", "fsdp")
    }
    assert losses["fsdp"] == pytest.approx(losses["ddp"], rel=0.02)
