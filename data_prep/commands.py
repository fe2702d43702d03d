"""The two jobs of the command line: prepare a folder of videos, and merge the parts of a job array."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from data_prep import filters, pool, report
from data_prep.duplicates import duplicates
from data_prep.layouts import LAYOUTS, Source
from data_prep.pipeline import Record
from data_prep.settings import FPS, Settings
from data_prep.staging import Staging, StagingError
from dex import weights
from dex.data.shards import ShardError, StoredClip, packed_clips, write_shards
from dex.files import remove_left

Part = tuple[int, int]  # (i, N): the i-th of N parts, counted from 1


def prepare(root: Path, out: Path, layout: str, settings: Settings, workers: int, part: Part) -> str:
    """INPUT → shards in `out`; goes on where an earlier run was interrupted. Returns the summary.

    Raises `ValueError` (also `ShardError`, `WeightsError`, `StagingError`) or `pool.WorkerError` with one line.
    """
    root, out = root.resolve(), out.resolve()
    sources, copies = _sources(root, out, layout, part)
    begun_with = {**asdict(settings), "layout": layout, "part": f"{part[0]}/{part[1]}"}
    staging = Staging(out)
    if finished := report.load(out):
        _check_finished(out, finished, begun_with, sources)
        staging.discard()  # where the last run was killed while it tidied up
        records = report.records_of(finished)
        text = report.summary(records) + "already complete, nothing to do\n"
    else:
        _check_machine()
        with staging.opened(begun_with):
            records = _run(sources, copies, staging, settings, workers)
            text = _publish(out, list(staging.clips(sources)), records, begun_with)
            staging.discard()
    return _with_clips(text, records, out)


def merge(parts: Sequence[Path], out: Path, incomplete: bool = False) -> str:
    """Shards of several finished runs → one set of shards, as a single run would have written it. Returns the summary.

    Raises `ShardError` where a run is not finished, was begun with other settings than the first, or (unless
    `incomplete`) where the i-th of N parts is not among them.
    """
    out = out.resolve()
    if report.load(out) or any(part.resolve() == out for part in parts):
        raise ShardError(f"{out}: holds finished shards already; give --out a new folder")
    records: list[Record] = []
    clips: list[StoredClip] = []
    owner: dict[str, Path] = {}
    settings: list[dict] = []
    for part in parts:
        if (finished := report.load(part)) is None:
            raise ShardError(f"{part}: no {report.NAME}, so this part is not finished; run its command again")
        settings.append(finished["settings"])
        _check_settings(part, settings[-1], parts[0], settings[0])
        found = report.records_of(finished)
        repeated = {record.sha256 for record in found if record.clips and owner.setdefault(record.sha256, part) != part}
        records += [_as_duplicate(record, owner) if record.sha256 in repeated else record for record in found]
        if finished["totals"]["clips"]:
            clips += [clip for clip in packed_clips(part) if clip.meta.source_sha256 not in repeated]
    begun_with = {**settings[0], "part": " + ".join(one["part"] for one in settings)}
    if not incomplete:
        _check_complete(begun_with["part"])
    out.mkdir(parents=True, exist_ok=True)
    return _with_clips(_publish(out, clips, records, begun_with), records, out)


def _publish(out: Path, clips: list[StoredClip], records: list[Record], begun_with: dict) -> str:
    remove_left(out)
    if clips:
        write_shards(clips, out)
        report.draw_contact_sheet(out / "contact_sheet.png", clips)
    report.draw_histograms(out / "histograms.png", records)
    return report.write(out, records, begun_with)


def _with_clips(text: str, records: list[Record], out: Path) -> str:
    """The summary `text`. Raises `ShardError` where no file gave a clip, the summary on stderr."""
    if not any(record.clips for record in records):
        print(text, file=sys.stderr, end="")
        raise ShardError(f"no clip was accepted from {len(records)} files; {out / report.NAME} has the reasons")
    return text


def _check_settings(part: Path, settings: dict, first: Path, wanted: dict) -> None:
    changed = [name for name in wanted if name != "part" and settings.get(name) != wanted[name]]
    if changed:
        found = ", ".join(f"{name} {settings.get(name)!r}, not {wanted[name]!r}" for name in changed)
        raise ShardError(
            f"{part}: prepared with {found} as {first}. Prepare both alike, or give data.shards the two folders"
        )


def _check_complete(parts: str) -> None:
    """Raises `ShardError` unless each i/N in `parts` ("1/3 + 2/3 + …") has its N - 1 companions, as often as itself."""
    counts = Counter(parts.split(" + "))
    for total in sorted({int(part.partition("/")[2]) for part in counts}):
        times = {i: counts[f"{i}/{total}"] for i in range(1, total + 1)}
        if missing := [str(i) for i, count in times.items() if count < max(times.values())]:
            raise ShardError(
                f"{len(missing)} of {total} parts are missing: {', '.join(missing)}. Run their commands; or, to merge "
                "what there is, or where there are fewer recordings than parts, give --incomplete"
            )


def _as_duplicate(record: Record, owner: dict[str, Path]) -> Record:
    return Record(record.file, filters.DUPLICATE, f"the same bytes are in {owner[record.sha256]}", sha256=record.sha256)


def _sources(root: Path, out: Path, layout: str, part: Part) -> tuple[list[Source], dict[str, str]]:
    """The sources of this part, and which of them are copies of another file."""
    if not root.exists():
        raise ValueError(f"{root}: no such file or folder")
    if out == root or root in out.parents:
        raise ValueError(
            f"--out {out} lies inside INPUT {root}: shards would be taken for videos. Choose another place"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file, need a folder")
    sources = sorted(LAYOUTS[layout](root), key=lambda source: (source.recording, source.camera, source.file))
    if not sources:
        wanted = "it is empty" if layout == "folder" else f"no file in it fits the tree of --layout {layout}"
        raise ValueError(f"{root}: {wanted}; data_prep/README.md shows the trees")
    recordings = {name: at for at, name in enumerate(sorted({source.recording for source in sources}))}
    mine = [source for source in sources if recordings[source.recording] % part[1] == part[0] - 1]
    if not mine:
        raise ValueError(f"--part {part[0]}/{part[1]}: there are only {len(recordings)} recordings to divide")
    return mine, duplicates(sources)


def _check_finished(out: Path, finished: dict, begun_with: dict, sources: list[Source]) -> None:
    before, now = {source["file"] for source in finished["sources"]}, {source.file for source in sources}
    if finished["settings"] == begun_with and now == before:
        return
    what = "other options" if finished["settings"] != begun_with else f"{len(now ^ before)} files more or less"
    raise StagingError(
        f"{out}: holds the shards of a finished run with {what}. Prepare into another --out; "
        "`python -m data_prep merge` joins them"
    )


def _check_machine() -> None:
    for name in ("mediapipe", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed; pip install -e '.[prep]'")
    for name in ("face_landmarker", "yunet"):
        weights.path(name)


def _run(
    sources: list[Source], copies: dict[str, str], staging: Staging, settings: Settings, workers: int
) -> list[Record]:
    """Processes what has no record yet, with a progress bar over the files' bytes."""
    records, jobs = _records_and_jobs(sources, copies, staging)
    sizes = {source.file: _size(source) for source in sources}
    done = sum(sizes[name] for name in records)
    clips = sum(len(record.clips) for record in records.values())
    shares: dict[str, float] = {}
    frames, begun = 0.0, time.monotonic()
    how = {"unit": "B", "unit_scale": True, "smoothing": 0.0, "mininterval": 0.1 if sys.stderr.isatty() else 10.0}
    with tqdm(total=sum(sizes.values()), initial=done, desc="prepare", **how) as bar:

        def show() -> None:
            bar.n = round(done + sum(sizes[name] * share for name, share in shares.items()))
            bar.update(0)

        def progress(name: str, share: float) -> None:
            shares[name] = share
            show()

        for (source, _), record in pool.run(jobs, settings, workers, staging.log, progress):
            staging.finish(source, record)
            records[source.file] = record
            shares.pop(source.file, None)
            done += sizes[source.file]
            frames += record.seconds * FPS
            clips += len(record.clips)
            rate = frames / (time.monotonic() - begun)
            told = f"{len(records)}/{len(sources)} files, {clips} clips, {rate:.0f} frames/s"
            bar.set_postfix_str(told, refresh=False)
            show()
    return [records[source.file] for source in sources]


def _records_and_jobs(
    sources: list[Source], copies: dict[str, str], staging: Staging
) -> tuple[dict[str, Record], list[pool.Job]]:
    """What is decided already, by file, and what is to do."""
    records: dict[str, Record] = {}
    jobs: list[pool.Job] = []
    for source in sources:
        if source.file in copies:
            detail = f"the same bytes are in {copies[source.file]}"
            records[source.file] = Record(source.file, filters.DUPLICATE, detail)
        elif record := staging.record(source):
            records[source.file] = record
        else:
            staging.clear(source)
            jobs.append((source, staging.clips_folder(source)))
    return records, jobs


def _size(source: Source) -> int:
    """Bytes, 1 at least: the weight of a source in the progress bar."""
    try:
        return max(1, source.path.stat().st_size)
    except OSError:
        return 1
