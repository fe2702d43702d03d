"""A network on disk, for both stages: a folder with config.json and a safetensors file. Nothing in it can run code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dex.files import replacing, write_atomic

SCHEMA = 1
Network = TypeVar("Network", bound=torch.nn.Module)


class ExportError(ValueError):
    """An export that cannot be read; the message names the file and the remedy."""


@dataclass(frozen=True)
class Saved:
    """A folder written by `write`, read back."""

    content: dict[str, Any]  # of config.json
    state: dict[str, Tensor]


def write(folder: Path, name: str, sections: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Writes `state` to the file `name` and `sections`, which JSON must know how to write, to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / name) as temporary:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}, temporary)
    content = {"schema": SCHEMA, "weights": name, **sections}
    write_atomic(folder / "config.json", (json.dumps(content, indent=1) + "\n").encode())


def weights_name(folder: Path) -> str | None:
    """Which weights a folder's config.json belongs to; None where it does not say. `read` says what is wrong then."""
    try:
        return json.loads((folder / "config.json").read_text())["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(folder: Path, name: str) -> Saved:
    """Raises `ExportError` where config.json or the weights are missing, damaged, of another schema or another kind."""
    path = folder / "config.json"
    if not path.is_file():
        raise ExportError(f"{path}: not found. Write it with `python -m dex.export RUN --out {folder}`.")
    try:
        content = json.loads(path.read_text())
        if content.get("schema") != SCHEMA:
            found = content.get("schema")
            raise ExportError(f"{path}: schema {found}, this program reads {SCHEMA}. Export the run again.")
        if content["weights"] != name:
            raise ExportError(
                f"{path}: belongs to {content['weights']}, needed is {name}. Give the folder of that one."
            )
        if not (folder / name).is_file():
            raise ExportError(f"{folder / name}: not found beside config.json. Export the run again.")
        return Saved(content, load_file(folder / name))
    except (json.JSONDecodeError, AttributeError, KeyError, SafetensorError) as error:
        raise ExportError(f"{folder}: cannot be read ({error!r}). Export the run again.") from error


def build(kind: Callable[[dict[str, Any]], Network], saved: Saved, folder: Path) -> Network:
    """`kind` made of the `network` in config.json, with the weights, frozen and in evaluation mode.

    Raises `ExportError` where it knows no such network, as when another version of dex wrote it, or the weights differ.
    """
    with of_this_version(folder / "config.json", "Export the run again, or use the version that wrote it."):
        network = kind(saved.content["network"])
    load_exactly(network, saved.state, folder)
    return network.requires_grad_(False).eval()


@contextmanager
def of_this_version(path: Path, remedy: str) -> Iterator[None]:
    """Raises `ExportError` where what is made inside, of the network that `path` describes, knows no such one."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path}: its network is none of this version of dex ({error}). {remedy}") from error


def load_exactly(module: torch.nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    """Raises `ExportError` with every key that is missing, unexpected or of another shape."""
    wanted = module.state_dict()
    differ = [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected or differ:
        raise ExportError(
            f"{folder}: weights do not fit config.json; missing {missing}, unexpected {unexpected}, "
            f"of another shape {differ}. Export the run again."
        )
    module.load_state_dict(state)


def check_same_network(folder: Path, here: Any, there: Any, leave_out: Collection[str] = ()) -> None:
    """Raises `ExportError` with the first setting in which a training's network and that of the export it is to start
    from differ, both dataclasses; those of `leave_out` may."""
    mine, theirs = (flatten(dataclasses.asdict(config)) for config in (here, there))
    for name in sorted({*mine, *theirs} - {*leave_out}):
        if mine.get(name) != theirs.get(name):
            raise ExportError(
                f"{folder}: model.network.{name} is {theirs.get(name)} there, here {mine.get(name)}; "
                "model.start needs an export of the same network"
            )


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    if not isinstance(content, dict):
        return {prefix: content}
    return {k: v for key, value in content.items() for k, v in flatten(value, f"{prefix}.{key}".strip(".")).items()}
