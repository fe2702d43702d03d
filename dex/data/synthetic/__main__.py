"""Synthetic heads from the command line.

python -m dex.data.synthetic --out SHARDS --clips 100 --size 128 --seed 0     shards with exact labels
python -m dex.data.synthetic --sheet sheet.png                                6 × 6 heads, to look at
python -m dex.data.synthetic --benchmark                                      frames a second on one core
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dex.data.synthetic.head import make_head
from dex.data.synthetic.motion import pose_matrix, sample_expression, sample_pose
from dex.data.synthetic.render import render
from dex.data.synthetic.splits import SPLITS, identity_seed
from dex.data.synthetic.write import Plan, write


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "python -m dex.data.synthetic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    job = p.add_mutually_exclusive_group(required=True)
    job.add_argument("--out", type=Path, metavar="SHARDS", help="write shards and index.json into this folder")
    job.add_argument("--sheet", type=Path, metavar="PNG", help="draw 6 identities × 6 expressions and poses")
    job.add_argument("--benchmark", action="store_true", help="measure the renderer at 64, 128 and 256 pixels")
    p.add_argument("--clips", type=int, default=16, help="takes; with --views K each gives K clips (default 16)")
    p.add_argument("--size", type=int, default=128, help="pixels, both sides (default 128)")
    p.add_argument("--seed", type=int, default=0, help="0 to 499; other seeds, other heads and motions (default 0)")
    p.add_argument("--seconds", type=float, default=5.0, help="length of each clip at 25 frames a second (default 5)")
    p.add_argument("--identities", type=int, default=0, help="different heads (default: one a take)")
    p.add_argument("--views", type=int, default=1, help="cameras that see each take (default 1)")
    p.add_argument("--split", choices=sorted(SPLITS), default="train", help="splits never share a head (default train)")
    p.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    return p


def sheet(size: int, seed: int) -> Image.Image:
    """6 × 6 heads: a row is an identity; a first column looks straight with a calm face, the others vary both."""
    rng = np.random.default_rng([seed, 6])
    rows = []
    for row in range(6):
        head = make_head(identity_seed("test", 1000 * seed + row))
        expression, pose = sample_expression(rng, 6), sample_pose(rng, 6)
        expression[0] = 0
        pose[:1] = pose_matrix(np.zeros(1), np.zeros(1), np.zeros(1), np.array([(0.0, 0.08)]), np.array([0.74]))
        rows.append(np.concatenate(list(render(head, expression, pose, size).image), 1))
    return Image.fromarray(np.concatenate(rows))


def benchmark(frames: int = 100, heads: int = 5) -> None:
    """Print the renderer's speed on one core, over several heads in random poses and expressions."""
    rng = np.random.default_rng(0)
    drawn = [make_head(seed) for seed in range(heads)]
    inputs = [(head, sample_expression(rng, frames), sample_pose(rng, frames)) for head in drawn]
    start = time.process_time()
    for seed in range(heads, 4 * heads):
        make_head(seed)
    print(f"make_head  {(time.process_time() - start) / (3 * heads) * 1e3:6.1f} ms")
    for size in (64, 128, 256):
        render(inputs[0][0], inputs[0][1][:2], inputs[0][2][:2], size)
        start = time.process_time()
        for head, expression, pose in inputs:
            render(head, expression, pose, size)
        spent = time.process_time() - start
        print(f"{size:3d} × {size:<3d}  {heads * frames / spent:6.0f} frames/s on one core")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 on success, 1 after one line `error: …`."""
    a = parser().parse_args(arguments)
    try:
        if a.benchmark:
            benchmark()
        elif a.sheet:
            sheet(a.size, a.seed).save(a.sheet)
        else:
            plan = Plan(a.clips, a.size, a.seed, a.seconds, a.identities, a.views, a.split)
            index = write(plan, a.out, a.workers)
            print(f"{a.out}: {index.clips} clips, {index.frames} frames, {len(index.identities)} identities")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
