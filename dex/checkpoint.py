"""A checkpoint on disk: `step-0000200/`, each rank's part of the tensors as safetensors and the rest in `state.pt`.

torch.distributed.checkpoint writes and reads the tensors, so what one number of ranks wrote, sharded or not, any other
number reads. Its safetensors files take the place of its usual format, which is a pickle. A folder has its name only
when it is complete, and the link `last` beside it is moved afterwards: a kill at any time leaves the previous one.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import checkpoint as dcp

SCHEMA = 1
STATE = "state.pt"
LAST = "last"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message says which, why, and the remedy."""


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}"


def complete(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def newest(folder: Path) -> Path | None:
    """The checkpoint at which a run goes on; None in a new one.

    It is where `last` points to. There is no such link yet after a kill between the first checkpoint and it, nor in a
    copy that leaves links out; the newest checkpoint is the right one then. A link that points nowhere is a person's
    doing, and so is the choice: raises `CheckpointError`.
    """
    last, there = folder / LAST, complete(folder)
    if last.exists():
        return last.resolve()
    if last.is_symlink() and there:
        raise CheckpointError(
            f"{last} points to {last.readlink()}, which is not there. Let it point to one that is: "
            f"ln -sfn {there[-1].name} {last}"
        )
    return there[-1] if there else None


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(trainer: L.Trainer, path: Path, settings: Mapping[str, Any]) -> None:
    """Writes the checkpoint `path` and points `last` beside it there; every rank must call it.

    It holds the module's state_dict (weights and moving average), the optimisers' state, Lightning's loops, the
    callbacks' and the datamodule's state, every rank's random state, and `settings`. Raises `OSError` on every rank
    where one of them cannot write; what was there before is then left as it was.
    """
    unfinished = hidden(path)
    begin = trainer.is_global_zero
    if begin:
        shutil.rmtree(unfinished, ignore_errors=True)
    trainer.strategy.barrier()
    failure = ""
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        with quiet():
            writer = dcp.HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
            dcp.save(tensors(trainer), storage_writer=writer, no_dist=not dist.is_initialized())
    except (OSError, dcp.api.CheckpointException) as error:
        failure = reason(error)
    state = rest(trainer, settings)
    if begin and not failure:
        try:
            with (unfinished / STATE).open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                remove(path)
            unfinished.rename(path)
            point_to(path)
        except OSError as error:
            failure = reason(error)
    if trainer.strategy.reduce_boolean_decision(bool(failure), all=False):
        if begin:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(failure or "another rank could not write")


def hidden(path: Path) -> Path:
    """Where a checkpoint is written: no reader looks there."""
    return path.with_name(f".{path.name}.unfinished")


def point_to(path: Path) -> None:
    """Moves the link `last` in one step; where a copy has made a folder of it, that goes first."""
    last, new = path.with_name(LAST), path.with_name(f".{LAST}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(path.name)
    if last.is_dir() and not last.is_symlink():
        remove(last)
    new.replace(last)


def remove(path: Path) -> None:
    """Deletes a checkpoint so that a kill in between leaves none that only looks complete."""
    gone = path.with_name(f".{path.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def reason(error: BaseException) -> str:
    """The first line of what went wrong; torch gathers the ranks' exceptions in one."""
    inner = getattr(error, "failures", None)
    first = next(iter(inner.values()))[0] if inner else error
    return (str(first).strip() or type(first).__name__).splitlines()[0]


def tensors(trainer: L.Trainer) -> dict[str, Tensor]:
    """Every tensor by its name; contiguous, as safetensors wants them."""
    module: Any = trainer.lightning_module
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    for number, optimizer in enumerate(trainer.optimizers):
        for parameter, moments in optimizer.state.items():
            found |= {f"optimizer_{number}.{names[parameter]}.{key}": value for key, value in moments.items()}
    return {name: tensor.contiguous() for name, tensor in found.items()}


def rest(trainer: L.Trainer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is no tensor of the model; every rank must call it."""
    states: list[Any] = [random_state()]
    if dist.is_initialized():
        states *= dist.get_world_size()
        dist.all_gather_object(states, random_state())
    datamodule: Any = getattr(trainer, "datamodule", None)
    said: dict[str, Any] = {}
    trainer.lightning_module.on_save_checkpoint(said)
    return {
        "schema": SCHEMA,
        "step": trainer.global_step,
        "world_size": trainer.world_size,
        "settings": dict(settings),
        "module": said,
        "loops": loops(trainer),
        "callbacks": {callback.state_key: state for callback, state in callback_states(trainer)},
        "data": datamodule.state_dict() if datamodule else {},
        "random": states,
    }


def loops(trainer: L.Trainer) -> dict[str, Any]:
    """Lightning's loops as if the batch that has just arrived were not there: it comes again after a resumption.

    Lightning would otherwise count one too many, and shift validation and the logs' steps by it.
    """
    state = copy.deepcopy(trainer.fit_loop.state_dict())
    for count in state["epoch_loop.batch_progress"].values():
        if isinstance(count, dict):
            count["ready"] = count["completed"]
    return state


def callback_states(trainer: L.Trainer) -> Iterator[tuple[L.Callback, dict[str, Any]]]:
    callbacks: Iterable[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return ((callback, state) for callback in callbacks if (state := callback.state_dict()))


def random_state() -> dict[str, Any]:
    """Of this process's generators, as plain values."""
    kind, keys, *others = np.random.get_state()  # noqa: NPY002  # the global one, since libraries use it
    numbers = np.asarray(keys).tolist()
    state = {"python": random.getstate(), "numpy": (kind, numbers, *others), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_state(path: Path) -> dict[str, Any]:
    """Everything but the tensors. Raises `CheckpointError`."""
    if not (path / STATE).is_file():
        raise CheckpointError(
            f"{path}: no checkpoint. A run writes them while `python -m dex.fit` trains; where checkpoint.folder "
            "names another place, name one of those there."
        )
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of the reader
        raise CheckpointError(
            f"{path / STATE}: damaged ({reason(error)}). Let {LAST} point to an older step-*, if there is one."
        ) from error
    if state.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: schema version {state.get('schema')}, this program reads {SCHEMA}. "
            "Export it with the version of dex that wrote it, or train afresh in a new --run."
        )
    return state


def read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """The whole tensors below a prefix, by their names without it; for export, in one process."""
    known = stored(path)
    wanted = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in known.items() if name.startswith(prefix)}
    with quiet():
        dcp.load(wanted, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in wanted.items()}


def stored(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of every tensor of a checkpoint. Raises `CheckpointError`."""
    try:
        found: dict[str, Any] = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except Exception as error:
        raise CheckpointError(
            f"{path}: damaged ({reason(error)}). Let {LAST} point to an older step-*, if there is one."
        ) from error
    return {name: (entry.size, entry.properties.dtype) for name, entry in found.items()}


def load(trainer: L.Trainer, path: Path) -> None:
    """Brings a trainer that has been set up to where the checkpoint was written; every rank must call it.

    Random states go back to their ranks; a rank that the checkpoint did not know keeps its own. Raises
    `CheckpointError` where it does not fit the model, and what the module's own `on_load_checkpoint` raises.
    """
    state = read_state(path)
    known = stored(path)
    module: Any = trainer.lightning_module
    into: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    check_names(path, into, known)
    module.on_load_checkpoint(state["module"])
    parameters = dict(module.named_parameters())
    for number, optimizer in enumerate(trainer.optimizers):
        prefix = f"optimizer_{number}."
        for name, (size, _) in known.items():
            if name.startswith(prefix):
                owner, key = name.removeprefix(prefix).rsplit(".", 1)
                moment = empty_moment(parameters[owner], size, optimizer)
                into[name] = optimizer.state[parameters[owner]][key] = moment
    with quiet():
        reader = dcp.HuggingFaceStorageReader(str(path))
        dcp.load(into, storage_reader=reader, no_dist=not dist.is_initialized())
    trainer.fit_loop.load_state_dict(state["loops"])
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    datamodule: Any = getattr(trainer, "datamodule", None)
    if datamodule:
        datamodule.load_state_dict(state["data"])
    if trainer.global_rank < len(state["random"]):
        restore_random(state["random"][trainer.global_rank])


def check_names(path: Path, into: Mapping[str, Tensor], known: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
    model = {name for name in known if name.startswith("model.")}
    wrong = sorted(model ^ set(into)) or [name for name, tensor in into.items() if tensor.shape != known[name][0]]
    if wrong:
        raise CheckpointError(
            f"{path}: made by another model or version of dex; {len(wrong)} tensors are missing, unknown or of another "
            f"shape, such as {wrong[0].removeprefix('model.')}. Give the run's own settings, or train in a new --run."
        )


def empty_moment(parameter: Tensor, size: torch.Size, optimizer: torch.optim.Optimizer) -> Tensor:
    """What an optimiser keeps of a parameter: a tensor like it, sharded as it is, or a count of steps."""
    if size == parameter.shape:
        return torch.zeros_like(parameter, requires_grad=False)
    on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    return torch.zeros(size, device=parameter.device if on_device else "cpu")


def restore_random(state: Mapping[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *others = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *others))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def quiet() -> Iterator[None]:
    """torch warns of every checkpoint that a single process writes or reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch.distributed.checkpoint")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
