"""Teaches the network of `dex.reading.regressor`: `python -m dex.reading.teach [--steps N] [--seed N] [--out FILE]`.

Degraded renders of identities of the training split, made as they are needed; least squares, every control in its own
deviations. Prints R² of every control on identities of the validation split, degraded and exact; at the end how a
drawing that fits and the network share the answer (`dex.reading.estimate`), and the file's sha256. The file in use is
pinned; another takes its place by the three steps that are printed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from dex.cores import usable_cores
from dex.data.synthetic.controls import NAMES
from dex.data.synthetic.head import Head, make_head
from dex.data.synthetic.splits import identity_seed
from dex.files import write_atomic
from dex.muon import Muon
from dex.reading import fit
from dex.reading.degrade import EACH, Degraded, make
from dex.reading.estimate import mixed
from dex.reading.regressor import WEIGHTS, Regressor, answer

HEADS = 16  # of a step, `EACH` pictures of each
MUON_RATE, ADAM_RATE, WARMUP = 0.02, 1.5e-3, 100
UNSEEN = 48  # heads to judge by
SCALES = (0.01, 0.015, 0.02, 0.03)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dex.reading.teach", description=__doc__)
    parser.add_argument("--steps", type=int, default=4000, help=f"of {HEADS * EACH} pictures")
    parser.add_argument("--identities", type=int, default=1000, help="of the training split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs") / WEIGHTS.name, help="not the file in use, by default")
    asked = parser.parse_args()
    if asked.steps < 1 or asked.identities < 2 or asked.seed < 0:
        sys.exit(
            f"error: --steps {asked.steps}, --identities {asked.identities}, --seed {asked.seed}: need ≥ 1, ≥ 2, ≥ 0"
        )
    try:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        with asked.out.open("ab"):  # a place that cannot be written is told before half an hour of teaching
            pass
        network = teach(asked.steps, asked.identities, asked.seed)
        content = save({name: weight.half().contiguous() for name, weight in network.state_dict().items()})
        write_atomic(asked.out, content)
    except OSError as error:
        sys.exit(f"error: {error}")
    print(compared(network))
    print(f"{asked.out}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    print(f"To use it: copy it to {WEIGHTS}, set SHA256 in regressor.py beside it, then python -m dex.reading --write")


def teach(steps: int, identities: int, seed: int) -> Regressor:
    """Prints as it goes."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([0x7EAC, seed])
    heads = heads_of("train", identities)
    network = Regressor()
    rates = (MUON_RATE, ADAM_RATE)
    optimiser = Muon(network.parameters(), MUON_RATE, [], ADAM_RATE, betas=(0.9, 0.99))
    bad, exact = unseen(UNSEEN)
    begun = time.perf_counter()
    for step in range(steps):
        share = min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * share
        batch = make(rng, heads, HEADS)
        found = answer(network, batch.pictures, batch.neutral, batch.pose)
        loss = errors(found, batch).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if not (step + 1) % 500 or step + 1 == steps:
            print(f"step {step + 1}, {time.perf_counter() - begun:.0f} s, loss {loss:.3f}", flush=True)
            for name, pictures in (("degraded", bad), ("exact", exact)):
                print(f"  R², {name}: {r2(network, pictures)}", flush=True)
    return network.eval()


def heads_of(split: str, count: int) -> list[Head]:
    """Far from those that tuples are made of."""
    return [make_head(identity_seed(split, 2**22 + number)) for number in range(count)]


def unseen(number: int) -> tuple[Degraded, Degraded]:
    """Degraded and exact pictures of `number` heads of the validation split."""
    rng, heads = np.random.default_rng(0x5EE), heads_of("val", number)
    return make(rng, heads, number), make(rng, heads, number, exact=True)


def errors(found: Float[Tensor, "N C"], pictures: Degraded) -> Float[Tensor, "N C"]:
    """Of answers, in deviations of each control."""
    return (found - pictures.controls) / torch.from_numpy(fit.prior()[1]).float()


def r2(network: Regressor, pictures: Degraded) -> str:
    with torch.no_grad():
        found = answer(network, pictures.pictures, pictures.neutral, pictures.pose)
    wrong = (found - pictures.controls).square().mean(0)
    scores = (1 - wrong / pictures.controls.var(0)).tolist()
    return ", ".join(f"{name} {value:.2f}" for name, value in zip(NAMES, scores, strict=True))


def compared(network: Regressor) -> str:
    """Mean square error of expression, in deviations² of each control, of the fit, of the network, and of what both say
    together where the drawing counts as an explanation down to several residuals; of unseen identities."""
    lines = ["| pictures | residual | fit | network | " + " | ".join(f"together, {scale}" for scale in SCALES) + " |"]
    lines.append("| --- " * (4 + len(SCALES)) + "|")
    for name, pictures in zip(("degraded", "exact"), unseen(UNSEEN), strict=True):
        found = fit.read(pictures.heads, pictures.pictures, pictures.pose[:, None], usable_cores())
        neutral = fit.neutral(pictures.heads, found.pose)
        with torch.no_grad():
            seen = answer(network, pictures.pictures, neutral, found.pose)
        answers = [found.controls, seen, *(mixed(found, seen, scale) for scale in SCALES)]
        wrong = [float(errors(one, pictures).square().mean()) for one in answers]
        lines.append(f"| {name} | {found.residual.mean():.3f} | " + " | ".join(f"{one:.3f}" for one in wrong) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
