"""Videos → numbers: every pair is read once, its values are kept, frames are not.

The unit of every mean is the pair, its interval is by cluster bootstrap over the sources' identities. Influence and the
distances of distributions are of the whole set.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from tqdm import tqdm

from benchmarks.estimator import Estimator, worth
from benchmarks.manifest import Pair
from benchmarks.material import Frames, SyntheticClips
from benchmarks.memory import return_freed
from benchmarks.reading import Seen, Truth, as_float
from benchmarks.results import metric
from benchmarks.videos import read_video
from dex.metrics import MetricError
from dex.metrics.background import BackgroundDrift
from dex.metrics.distributions import FrechetDistance, KernelDistance
from dex.metrics.extractors import Source
from dex.metrics.extractors.faces import FaceReading
from dex.metrics.extractors.features import VIDEO_FRAMES, VIDEO_LEAST, check_count
from dex.metrics.extractors.identity import IdentityCosine
from dex.metrics.influence import Reading, distances_of, influence_of, selectivity, swap_distances, swap_error
from dex.metrics.motion import ExpressionDistance, PoseDistance
from dex.metrics.pictures import Psnr, Ssim
from dex.metrics.statistics import RESAMPLES, bca, cluster_bootstrap

_TRIM_EVERY = 16  # clips: each costs the next clip the time to get its memory anew
_SPLIT = ("pp", "pe", "ep", "ee")


@dataclass(frozen=True)
class Tuples:
    """`distances_of` and `swap_distances` of each tuple, summed over its frames."""

    sums: list[Float[np.ndarray, "6"]]
    swaps: list[Float[np.ndarray, "2"]]
    identities: list[str]

    @property
    def count(self) -> int:
        return len(self.sums)

    @property
    def matrix(self) -> dict[str, float] | None:
        return influence_of(torch.from_numpy(np.sum(self.sums, axis=0))) if self.sums else None

    def influence(self, number: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """`number` of the matrix, as the value of an entry and its interval."""
        return self._measured(self.sums, lambda totals: number(influence_of(totals)))

    def swap_error(self) -> dict[str, Any]:
        """As `influence`."""
        return self._measured(self.swaps, swap_error)

    def _measured(self, sums: Sequence[Float[np.ndarray, "n"]], number: Callable[[Tensor], Any]) -> dict[str, Any]:
        if not sums:
            return {}
        _, label = np.unique(self.identities, return_inverse=True)
        clusters = np.zeros((label.max() + 1, len(sums[0])))
        np.add.at(clusters, label, np.stack(sums))
        interval = bca(clusters, lambda totals: number(torch.from_numpy(totals)))
        return {"value": float(number(torch.from_numpy(np.sum(sums, axis=0))))} | _interval(interval)


@dataclass
class Scores:
    metrics: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    warnings: list[str]


class Scorer:
    """Scores one folder of videos of a manifest."""

    def __init__(self, truth: Truth) -> None:
        """`truth`: may have been read from by the scorers of other methods."""
        self.truth = truth
        self.manifest, self.material, self.extractors = truth.manifest, truth.material, truth.extractors
        self._values: list[dict[str, float]] = []
        self._lost: dict[str, list[float]] = defaultdict(list)  # of each video, the share of frames left out
        self._outputs: dict[str, FaceReading] = {}
        self._fake = FrechetDistance(self.extractors.features.dimensions)
        self._kernel = KernelDistance(self.extractors.features.dimensions)
        self._background = BackgroundDrift()
        self._video: FrechetDistance | None = None
        if self.extractors.videos is not None:
            check_count(len(self.manifest.pairs), self.extractors.few_videos)
            if self.manifest.pairs[0].pose.count < VIDEO_FRAMES:
                raise MetricError(f"FVD needs {VIDEO_FRAMES} frames a pair, {self.manifest.name} has fewer")
            self._video = FrechetDistance(self.extractors.videos.dimensions)

    def score(self, videos: Path) -> Scores:
        """`videos` must have passed `check_videos`. Raises ValueError."""
        manifest = self.manifest
        for pair in tqdm(manifest.pairs, f"scoring {videos.name}", unit="clip", leave=False):
            self.add(pair, read_video(videos, pair, manifest.size, manifest.fps))
        for number, pair in enumerate(manifest.pairs):
            if pair.edit == "expression" and isinstance(self.material, SyntheticClips):
                unedited = next(p for p in manifest.pairs[number - 2 :] if p.tuple == pair.tuple and p.edit == "none")
                self._add_background(videos, unedited, pair)
        return Scores(list(self._metrics()), self._pairs(), self._warnings())

    def add(self, pair: Pair, output: Frames) -> None:
        """Reads the video of the manifest's next pair."""
        self._values.append(self._score_pair(pair, output))
        if len(self._values) % _TRIM_EVERY == 0:
            return_freed()

    # ---- one pair ----------------------------------------------------------------------------------------------------

    def _score_pair(self, pair: Pair, output: Frames) -> dict[str, float]:
        seen = self.extractors.see(output)
        self._outputs[pair.id] = seen.faces
        pose, expression, source = (self.truth.seen(span) for span in (pair.pose, pair.expression, pair.source))
        values = self._motion(seen, pose, expression)
        reference = pose if self.manifest.task == "self" else source
        if self.extractors.identity is not None:
            cosine = of_clip(IdentityCosine(), seen.embedding, reference.embedding.expand_as(seen.embedding))
            values[f"csim.{self.extractors.identity.id}.v1"] = float(cosine["csim"])
            self._lost["csim"].append(float(cosine["fail_rate"]))
        made = as_float(output)
        self._fake.update(features := self.extractors.features.features(made), real=False)
        self._kernel.update(features[:: self.truth.kernel_stride], real=False)
        if self._video is not None:
            self._video.update(self.extractors.video(made), real=False)
            self._video.update(self.truth.video(pair.pose), real=True)  # as many as generated ones
        truth = self.material.truth(pair.source, pair.pose, pair.expression)
        if truth is not None:
            true = as_float(truth)
            values["psnr.v1"] = float(of_clip(Psnr(), made, true))
            values["ssim.gauss11.v1"] = float(of_clip(Ssim(), made, true))
            values[self.extractors.perceptual.id] = float(self.extractors.perceptual.distance(made, true).mean())
            if self.manifest.task == "disentangled":
                self.truth.look_at(pair, truth)
        return values

    def _motion(self, seen: Seen, pose: Seen, expression: Seen) -> dict[str, float]:
        expressions = of_clip(ExpressionDistance(), seen.faces.expression, expression.faces.expression)
        poses = of_clip(PoseDistance(), seen.faces.pose, pose.faces.pose)
        self._lost["aed"].append(float(expressions["fail_rate"]))
        self._lost["apd"].append(float(poses["fail_rate"]))
        found = expressions["aed"], *(poses[name] for name in PoseDistance.names)
        return dict(zip(self._motion_read_by, map(float, found), strict=True))

    @property
    def _motion_read_by(self) -> dict[str, Source]:
        """The metrics of `_motion`, in its order, and what reads each."""
        names, sources = self.extractors.faces.names, self.extractors.faces.sources
        return {
            f"aed.{names.expression}_l1mean.v1": sources[names.expression],
            f"apd.{names.rotation}_geodesic_deg.v1": sources[names.rotation],
            f"apd.{names.place}_translation.v1": sources[names.place],
            f"apd.{names.place}_log_scale.v1": sources[names.place],
        }

    def _add_background(self, videos: Path, unedited: Pair, edited: Pair) -> None:
        assert isinstance(self.material, SyntheticClips)
        size, fps = self.manifest.size, self.manifest.fps
        pictures = [as_float(read_video(videos, pair, size, fps)) for pair in (edited, unedited)]
        masks = [self.material.drawn(p.source, p.pose, p.expression).mask for p in (edited, unedited)]
        heads = torch.from_numpy(np.stack([mask > 0 for mask in masks], axis=1))
        self._background.update(pictures[0], pictures[1], heads, torch.from_numpy(masks[1] > 1))

    # ---- the whole set -----------------------------------------------------------------------------------------------

    def _metrics(self) -> Iterator[dict[str, Any]]:
        identities = [self.manifest.identity[pair.source.clip] for pair in self.manifest.pairs]
        for name in self._values[0]:
            values = np.array([value[name] for value in self._values])
            yield self._mean(name, values, identities)
        yield from self._distribution()
        if self.manifest.task == "disentangled":
            yield from self._influence()
            if isinstance(self.material, SyntheticClips):
                yield self._drift()

    def _mean(self, name: str, values: Float[np.ndarray, "N"], identities: list[str]) -> dict[str, Any]:
        read = values[np.isfinite(values)]
        interval = cluster_bootstrap(values, identities)
        entry = _entry(
            name, float(read.mean()) if len(read) else None, "mean over pairs of means over frames", len(read)
        )
        entry |= _interval(interval)
        kind = name.partition(".")[0]
        if kind in self._lost:
            entry["fail_rate"] = float(np.mean(self._lost[kind]))
        if (source := self._source(name)) is not None:
            entry["extractor"] = vars(source)
        if kind == "csim":
            entry |= self._anchors()
        return entry

    def _source(self, name: str) -> Source | None:
        """What a metric was read by."""
        identity, perceptual = self.extractors.identity, self.extractors.perceptual
        if identity is not None and name.startswith("csim."):
            return identity.source
        return {**self._motion_read_by, perceptual.id: perceptual.source}.get(name)

    def _anchors(self) -> dict[str, Any]:
        """Cosine of one person's frames and of strangers' on this very set: what a CSIM is to be read between."""
        by_person: dict[str, list[Tensor]] = defaultdict(list)
        for span, seen in self.truth.spans.items():
            rows = seen.embedding[seen.embedding.isfinite().all(dim=1)]
            if len(rows):
                by_person[self.manifest.identity[span.clip]].append(torch.cat([rows[:1], rows[1:][-1:]]))
        same = [torch.cat(rows) for rows in by_person.values()]
        pairs = [rows for rows in same if len(rows) > 1]
        within = [(rows[:, None] * rows).sum(-1)[~torch.eye(len(rows), dtype=torch.bool)].mean() for rows in pairs]
        first = torch.stack([rows[0] for rows in same]) if same else torch.zeros(0, 1)
        apart = (first @ first.mT)[~torch.eye(len(first), dtype=torch.bool)]
        anchors = {"same_person": float(torch.stack(within).mean()) if within else None}
        return {"anchors": anchors | {"strangers": float(apart.mean()) if len(apart) else None}}

    def _distribution(self) -> Iterator[dict[str, Any]]:
        features = self.extractors.features
        clips, frames = len(self.manifest.pairs), self.manifest.pairs[0].pose.count
        self._fake.merge_state(self.truth.frechet)
        self._kernel.merge_state(self.truth.kernel)
        frechet = "fid" if features.id == "inception" else f"fid.{features.id}"
        entry = _entry(f"{frechet}.v1", float(self._fake.compute()), "of the set", clips * frames)
        try:
            floor: float | None = float(self.truth.floor.compute())
        except ValueError:  # a single driver has no halves
            floor = None
        note = "floor: one half of the drivers' clips against the other; so few make it larger"
        yield entry | {"extractor": vars(features.source), "floor": floor, "note": note}
        kernel = _entry(
            f"{frechet.replace('fid', 'kid')}.v1",
            float(self._kernel.compute()),
            "of the set",
            clips * math.ceil(frames / self.truth.kernel_stride),
        )
        yield kernel | {"extractor": vars(features.source)}

        if self._video is not None and self.extractors.videos is not None:
            videos, count = self.extractors.videos, len(self.manifest.pairs)
            entry = _entry(f"fvd.{videos.id}_n{count}.v1", float(self._video.compute()), "of the set", count)
            few = None if count >= VIDEO_LEAST else f"forced: {count} videos, below {VIDEO_LEAST} mostly bias"
            yield entry | {"extractor": vars(videos.source), "note": few}

    def _influence(self) -> Iterator[dict[str, Any]]:
        tuples = self._read_tuples(self._outputs)
        estimator = self._estimator()
        names, sources = self.extractors.faces.names, self.extractors.faces.sources
        name, extractor = names.both, {"extractor": vars(sources[names.both])}
        for which in _SPLIT:
            entry = _entry(f"influence_{which}.{name}.v1", None, "root of the ratio of sums", tuples.count)
            yield entry | extractor | tuples.influence(itemgetter(f"I_{which}"))
        swap = _entry(f"swap_error.{names.expression}.v1", None, "root of the ratio of sums", tuples.count)
        yield swap | {"extractor": vars(sources[names.expression])} | tuples.swap_error()
        entry = _entry(f"selectivity.{name}.v1", None, "of the influence matrix", tuples.count) | extractor
        if not tuples.count:
            yield entry | {"note": "no tuple in which every frame was read"}
        elif estimator is None:
            yield entry | {"note": "not measurable: no truth on this material to judge the estimator by"}
        elif estimator.why_not is not None:
            yield entry | {"note": f"not measurable: {estimator.why_not}"}
        else:
            measured = tuples.influence(lambda matrix: selectivity(matrix, estimator.cross_talk))
            yield entry | measured | {"note": estimator.words}

    def _read_tuples(self, outputs: dict[str, FaceReading]) -> Tuples:
        """Of the frames in which all five faces were found."""
        found = Tuples([], [], [])
        for none, pose, expression in self._tuples():
            seen = [outputs[pair.id] for pair in (none, pose, expression)]
            seen += [self.truth.spans[span].faces for span in (none.pose, pose.pose)]
            read = torch.stack([faces.found for faces in seen]).all(dim=0)
            if read.any():
                readings = [Reading(faces.pose[read], faces.expression[read]) for faces in seen]
                found.sums.append(distances_of(*readings).sum(dim=1).numpy())
                swapped = swap_distances(*(reading.expression for reading in readings[2:]))
                found.swaps.append(swapped.sum(dim=1).numpy())
                found.identities.append(self.manifest.identity[none.source.clip])
        return found

    def _tuples(self) -> Iterator[tuple[Pair, Pair, Pair]]:
        by_name: dict[str, dict[str, Pair]] = defaultdict(dict)
        for pair in self.manifest.pairs:
            by_name[pair.tuple][pair.edit] = pair
        yield from ((t["none"], t["pose"], t["expression"]) for t in by_name.values())

    def _estimator(self) -> Estimator | None:
        """The reader of faces, judged on the truth."""
        if not isinstance(self.material, SyntheticClips):
            return None
        read, exact = [], []
        for pair in self.manifest.pairs:
            faces = self.truth.faces[pair.id]
            read.append((faces.pose[faces.found], faces.expression[faces.found]))
            found = faces.found.numpy()
            exact.append((self.material.pose(pair.pose)[found], self.material.expression(pair.expression)[found]))
        return worth(read, exact, self.extractors.faces.blendshape_names, self._read_tuples(self.truth.faces).matrix)

    def _drift(self) -> dict[str, Any]:
        pictures = sum(pair.pose.count for pair in self.manifest.pairs if pair.edit == "expression")
        try:
            value, note = float(self._background.compute()), None
        except ValueError as error:
            value, note = None, str(error)
        return _entry("background_drift.v1", value, "ratio of means over pixels", pictures) | {"note": note}

    def _pairs(self) -> list[dict[str, Any]]:
        rows = []
        for pair, values in zip(self.manifest.pairs, self._values, strict=True):
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            rows.append({"id": pair.id, "identity": self.manifest.identity[pair.source.clip], "values": finite})
        return rows

    def _warnings(self) -> list[str]:
        blind = [pair.id for pair in self.manifest.pairs if not self._outputs[pair.id].found.any()]
        lost = sorted({span.clip for span, seen in self.truth.spans.items() if not seen.faces.found.any()})
        warnings = []
        if blind:
            warnings.append(
                f"no face in any frame of {len(blind)} videos, left out of AED, APD, CSIM: {', '.join(blind)}"
            )
        if lost:
            warnings.append(f"no face in these clips of the protocol: {', '.join(lost)}")
        return warnings


_UNITS = {
    "psnr": ("dB", "higher"),
    "ssim": ("", "higher"),
    "csim": ("cosine", "higher"),
    "aed": ("coef", "lower"),
    "influence_pp": ("", "none"),
    "influence_ee": ("", "none"),
    "influence_pe": ("", "none"),  # what never moves leaks nothing: a leak alone is no merit
    "influence_ep": ("", "none"),
    "selectivity": ("", "higher"),
}


def of_clip(measure: Metric, output: Tensor, reference: Tensor) -> Any:
    """Of a single clip, by the definition of a whole set's."""
    measure.update(output, reference)
    return measure.compute()


def _interval(interval: tuple[float, float]) -> dict[str, Any]:
    """Of an entry; nothing for a single identity, of which none can be told."""
    if not all(math.isfinite(bound) for bound in interval):
        return {}
    method = f"BCa cluster bootstrap over source identities, {RESAMPLES} resamples"
    return {"ci95": list(interval), "ci_method": method}


def _entry(name: str, value: float | None, aggregation: str, n: int) -> dict[str, Any]:
    unit, better = _UNITS.get(name.partition(".")[0], ("", "lower"))
    return metric(name, value, aggregation, n, "°" if name.endswith("_deg.v1") else unit, better)
