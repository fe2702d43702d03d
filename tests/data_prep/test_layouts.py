"""Every layout on a miniature of its folder tree."""

import os
from pathlib import Path

import pytest

from data_prep.layouts import LAYOUTS


def tree(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")
    return root


def found(layout: str, root: Path) -> list[tuple]:
    return [(s.file, s.identity, s.recording, s.camera) for s in LAYOUTS[layout](root)]


def test_folder(tmp_path: Path):
    tree(tmp_path, "b c.mp4", "-a.mov", "anna/1.mp4", "anna/deep/2.mkv", ".hidden.mp4", ".git/x.mp4", "notes.txt")
    assert found("folder", tmp_path) == [
        ("-a.mov", "-a", "-a.mov", "0"),
        ("anna/1.mp4", "anna", "anna/1.mp4", "0"),
        ("anna/deep/2.mkv", "anna", "anna/deep/2.mkv", "0"),
        ("b c.mp4", "b c", "b c.mp4", "0"),
        ("notes.txt", "notes", "notes.txt", "0"),
    ]
    assert found("folder", tmp_path / "b c.mp4") == [("b c.mp4", "b c", "b c.mp4", "0")]


def test_links_and_loops(tmp_path: Path):
    tree(tmp_path / "in", "a/1.mp4")
    tree(tmp_path / "elsewhere", "2.mp4")
    (tmp_path / "in/a/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/broken.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "in/pipe.mp4")
    assert [file for file, *_ in found("folder", tmp_path / "in")] == [
        "a/1.mp4",
        "broken.mp4",
        "more/2.mp4",
        "pipe.mp4",
    ]


def test_vfhq(tmp_path: Path):
    frames = "Clip+G0DGRma_p48+P0+C0+F11208-11383"
    tree(tmp_path, f"Group1/{frames}/00000000.png", f"Group1/{frames}/00000001.png", "Clip+a+b+P2+C1+F0-9.mp4", "x.mp4")
    assert found("vfhq", tmp_path) == [
        ("Clip+a+b+P2+C1+F0-9.mp4", "a+b+P2", "Clip+a+b+P2+C1+F0-9.mp4", "0"),
        (f"Group1/{frames}", "G0DGRma_p48+P0", f"Group1/{frames}", "0"),
    ]
    assert [source.picture_fps for source in LAYOUTS["vfhq"](tmp_path)] == [0, 25]


def test_celebv_hq(tmp_path: Path):
    tree(tmp_path, "35666/M2Ohb0FAaJU_1.mp4", "35666/_-Uhb0_AaJU_12.mp4", "readme.md")
    assert found("celebv-hq", tmp_path) == [
        ("35666/M2Ohb0FAaJU_1.mp4", "M2Ohb0FAaJU", "35666/M2Ohb0FAaJU_1.mp4", "0"),
        ("35666/_-Uhb0_AaJU_12.mp4", "_-Uhb0_AaJU", "35666/_-Uhb0_AaJU_12.mp4", "0"),
    ]


def test_hdtf(tmp_path: Path):
    tree(tmp_path, "WDA_KatieHill_000.mp4", "WDA_KatieHill_001_3.mp4", "RD_Radio10_000.mp4", "annotations.txt")
    assert {file: identity for file, identity, *_ in found("hdtf", tmp_path)} == {
        "RD_Radio10_000.mp4": "RD_Radio10",
        "WDA_KatieHill_000.mp4": "WDA_KatieHill",
        "WDA_KatieHill_001_3.mp4": "WDA_KatieHill",
    }


def test_nersemble(tmp_path: Path):
    tree(
        tmp_path,
        "017/sequences/EMO-1-shout+laugh/images/cam_222200037.mp4",
        "017/sequences/EMO-1-shout+laugh/images/cam_222200038.mp4",
        "017/sequences/BACKGROUND/images/cam_222200037.mp4",
        "017/calibration/camera_params.json",
    )
    assert [one[1:] for one in found("nersemble", tmp_path)] == [
        ("017", "017/EMO-1-shout+laugh", "222200037"),
        ("017", "017/EMO-1-shout+laugh", "222200038"),
    ]
    assert all(source.multi_view for source in LAYOUTS["nersemble"](tmp_path))


def test_ava_256(tmp_path: Path):
    tree(
        tmp_path,
        "m--20230306--0707--AXE977--GHS/decoder/image/cam400944.zip",
        "m--20230306--0707--AXE977--GHS/decoder/segmentation_parts/cam400944.zip",
        "m--20230306--0707--AXE977--GHS/encoder/image/cam-cyclop.zip",
        "20230831--0814--ADL311/decoder/image/cam400981.zip",
    )
    assert [one[1:] for one in found("ava-256", tmp_path)] == [
        ("ADL311", "20230831--0814--ADL311", "400981"),
        ("AXE977", "m--20230306--0707--AXE977--GHS", "400944"),
    ]
    assert {source.picture_fps for source in LAYOUTS["ava-256"](tmp_path)} == {30.0}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_folder(layout: str, tmp_path: Path):
    assert found(layout, tmp_path) == []
