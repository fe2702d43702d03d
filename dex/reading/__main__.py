"""The estimator's own figures on renders of the truth: `python -m dex.reading [--tuples N] [--size S] [--write]`.

`--degraded` spoils them first as small models spoil what they draw. `--write` measures the usual sets of tuples and
stores them in cross_talk.json, where the monitor looks them up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping

from jaxtyping import Float
from torch import Generator, Tensor

from dex.batch import FACE
from dex.cores import usable_cores
from dex.data.synthetic.controls import NAMES
from dex.data.synthetic.motion import FRAMINGS
from dex.files import write_atomic
from dex.pose import POSE_COMPONENTS
from dex.reading.degrade import degraded
from dex.reading.fit import SIZE
from dex.reading.measure import cross_talk, is_measurable, measure, truths
from dex.reading.own import KNOWN, USUAL, key
from dex.reading.tuples import STRATA, Tuples, make_tuples


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dex.reading", description=__doc__)
    parser.add_argument("--tuples", type=int, default=64, help="sources, each with two drivers")
    parser.add_argument("--size", type=int, default=64, help="pixels, both sides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stratum", choices=STRATA, help="degrees of the drivers' yaw; all of them if not given")
    parser.add_argument("--framing", choices=FRAMINGS, default="wide", help="how far the head fills the picture")
    parser.add_argument(
        "--degraded", action="store_true", help="renders spoilt as a small model's pictures, at 64 pixels"
    )
    parser.add_argument("--write", action="store_true", help="measure the usual sets and store them")
    asked = parser.parse_args()
    if asked.tuples < 2 or asked.size < 16 or asked.seed < 0:
        sys.exit(f"error: --tuples {asked.tuples}, --size {asked.size}, --seed {asked.seed}: need ≥ 2, ≥ 16 and ≥ 0")
    if asked.degraded and (asked.write or asked.size != SIZE):
        sys.exit(f"error: --degraded: renders of {SIZE} pixels are spoilt, and nothing of it is stored")
    if asked.write:
        known = {
            key(count, size, framing, 0): cross_talk(make_tuples(count, size, framing=framing), usable_cores())
            for count, size, framing in USUAL
        }
        write_atomic(KNOWN, (json.dumps(known, indent=1) + "\n").encode())
        print(f"{KNOWN}: {len(known)} sets of tuples")
        return
    tuples = make_tuples(asked.tuples, asked.size, asked.seed, stratum=asked.stratum, framing=asked.framing)
    begun = time.perf_counter()
    made = spoilt(tuples) if asked.degraded else truths(tuples)
    print(table(measure(made, tuples, usable_cores()).figures))
    print(f"{3 * asked.tuples} pictures in {time.perf_counter() - begun:.1f} s")


def spoilt(tuples: Tuples) -> dict[str, Float[Tensor, "N 3 S S"]]:
    """The oracle's outputs with the same errors in all pictures of a tuple, as a model makes them of one source."""
    labels = tuples.head.float() + (FACE - 1) * tuples.face.float()
    return {
        edit: degraded(picture, label[:, None], Generator().manual_seed(0))
        for (edit, picture), label in zip(truths(tuples).items(), labels, strict=True)
    }


def table(own: Mapping[str, float]) -> str:
    """Markdown."""
    rows = [(f"R² of {name}", own[f"r2/{name}"]) for name in (*POSE_COMPONENTS, "expression") if f"r2/{name}" in own]
    rows += [("gain I_pp", own["I_pp"]), ("gain I_ee", own["I_ee"])]
    rows += [("cross-talk φ_pe", own["I_pe"]), ("cross-talk φ_ep", own["I_ep"])]
    rows += [(f"gain of {name}", own[f"gain/{name}"]) for name in NAMES if f"gain/{name}" in own]
    rows += [("residual", own["residual"])]
    lines = ["| on renders of the truth | |", "| --- | --- |", *(f"| {name} | {value:.3f} |" for name, value in rows)]
    return "\n".join([*lines, f"\nmeasurable: {'yes' if is_measurable(own) else 'no'}"])


if __name__ == "__main__":
    main()
