"""Result files: a JSON for each method and protocol, with all that its numbers depend on; beside it a line a pair."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.manifest import sha256_of
from dex.files import file_sha256, write_atomic
from dex.speed import device_name

SCHEMA = 1
PAIRS = ".pairs.jsonl"
REFERENCES = (
    "oracle",
    "copy-driver",
    "copy-source",
    "constant",
    "joint-code",
    "shuffled-driver",
)  # as tables list them


class ResultError(ValueError):
    """A result file that cannot be trusted or read; the message names it."""


@dataclass(frozen=True)
class Result:
    """`content`: the JSON. `pairs`: {"id", "identity", "values": {metric: number or null}} of every pair."""

    content: dict[str, Any]
    pairs: list[dict[str, Any]]

    @property
    def method(self) -> str:
        return self.content["model"]["name"]

    def metric(self, name: str) -> dict[str, Any] | None:
        return next((m for m in self.content["metrics"] if m["id"] == name), None)

    def save(self, path: Path) -> None:
        """Writes PATH and, beside it, its pairs. The id is the sha256 of all but `id`, `time` and `command`."""
        text = "".join(json.dumps(pair, sort_keys=True) + "\n" for pair in self.pairs).encode()
        pairs = path.with_name(path.stem + PAIRS)
        self.content["per_pair"] = {"file": pairs.name, "sha256": hashlib.sha256(text).hexdigest()}
        self.content["id"] = content_id(self.content)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(pairs, text)
        write_atomic(path, (json.dumps(self.content, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Result:
        """Raises `ResultError` where the file or its pairs are missing, damaged, or not those that were written."""
        try:
            content = json.loads(path.read_text())
            if content["schema"] != SCHEMA:
                raise ResultError(f"{path}: schema {content['schema']}, this program reads {SCHEMA}. Score again")
            if content["id"] != content_id(content):
                raise ResultError(f"{path}: its content does not have the id that it carries: it was edited")
            text = path.with_name(content["per_pair"]["file"]).read_bytes()
            if hashlib.sha256(text).hexdigest() != content["per_pair"]["sha256"]:
                raise ResultError(f"{path}: {content['per_pair']['file']} is not the file that was written with it")
            return cls(content, [json.loads(line) for line in text.splitlines()])
        except OSError as error:
            raise ResultError(f"{error.filename}: {error.strerror}") from error
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ResultError(f"{path}: no result file ({error!r})") from error


def content_id(content: dict[str, Any]) -> str:
    return sha256_of([{k: v for k, v in content.items() if k not in ("id", "time", "command")}])


def metric(name: str, value: float | None, aggregation: str, n: int, unit: str, better: str) -> dict[str, Any]:
    """A metric of a result file; what stands at None is filled in by whoever knows it."""
    return {
        "id": name,
        "value": value,
        "unit": unit,
        "better": better,
        "aggregation": aggregation,
        "n": n,
        "ci95": None,
        "ci_method": None,
        "seed_sd": None,
        "fail_rate": None,
        "extractor": None,
        "floor": None,
        "note": None,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """What the numbers may depend on beside their inputs. `device`: of the networks that they come from."""
    cuda = torch.cuda.is_available()
    packages = sorted(f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions())
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "device": device_name(device),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "packages_sha256": sha256_of(packages),
    }


def checkpoint_sha256(checkpoint: Path) -> dict[str, str]:
    """Of every weights file of an export, or of a run's export, by its path inside."""
    folder = checkpoint / "export" if (checkpoint / "export").is_dir() else checkpoint
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*.safetensors"))}


def git_state() -> dict[str, Any]:
    """Commit of this checkout, and whether it has changes; nulls outside one."""

    def git(*words: str) -> str | None:
        run = subprocess.run(["git", "-C", Path(__file__).parent, *words], capture_output=True, text=True)
        return run.stdout.strip() if run.returncode == 0 else None

    try:
        status = git("status", "--porcelain", "--untracked-files=no")
        return {"git_commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
    except FileNotFoundError:  # no git
        return {"git_commit": None, "dirty": None}
