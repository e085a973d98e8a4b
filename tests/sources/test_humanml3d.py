"""HumanML3D: each trap of its formats, on small hand-made files and motions."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mminstruct.annotations import facts, timed
from mminstruct.errors import SourceError, UsageError
from mminstruct.schema import Context
from mminstruct.sources import ReadReport
from mminstruct.sources.humanml3d import FPS, SOURCE, HumanML3DSource, measure

TEXTS = {
    "000001": ["a person walks in a circle.#a/DET person/NOUN#0.0#0.0"],
    "M000001": ["a person walks in a mirrored circle.#a/DET#0.0#0.0"],
    "000002": ["they bow#they/PRON#1.0#2.5", "they wave, then bow#they/PRON#nan#nan"],
}
INDEX = """source_path,start_frame,end_frame,new_name
./pose_data/KIT/3/kick_high_left02_poses.npy,0,117,000001.npy
./pose_data/x.npy,20,-1,000002.npy
"""


def write(
    folder: Path, texts: dict[str, list[str]] | None = None, listed: list[str] | None = None
) -> Path:
    texts = TEXTS if texts is None else texts
    data = folder / "HumanML3D"
    (data / "texts").mkdir(parents=True)
    for name, lines in texts.items():
        (data / "texts" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (data / "train.txt").write_text("\n".join(listed or texts) + "\n")
    (data / "index.csv").write_text(INDEX)
    return folder


def read(folder: Path, source: HumanML3DSource = SOURCE) -> tuple[list[Context], ReadReport]:
    files = source.locate([folder], "train")
    assert files is not None
    report = ReadReport()
    return list(source.read(files, report)), report


def descriptions(context: Context) -> list[timed.Item]:
    return list(context.annotations["timed"])


def test_a_motion_has_descriptions_spans_and_a_length(tmp_path: Path) -> None:
    (one, other), report = read(write(tmp_path))
    assert (one.id, one.media.file_name, one.media.modality) == ("000001", "000001.npy", "motion")
    assert one.media.duration_s == 117 / FPS
    assert one.media.license == "LicenseRef-AMASS"
    assert descriptions(one) == [timed.Item("a person walks in a circle.")]
    assert other.media.duration_s is None  # -1 is to the end, wherever that is
    assert descriptions(other) == [
        timed.Item("they wave, then bow"),
        timed.Item("they bow", 1.0, 2.5),
    ]
    assert report.skipped == {"mirrored copy": 1}


def test_the_texts_are_mit_and_facts_from_the_joints_are_not() -> None:
    assert SOURCE.info.license == "MIT"
    assert HumanML3DSource(motion_facts=True).info.license == "LicenseRef-AMASS"


def test_a_description_may_have_a_number_sign(tmp_path: Path) -> None:
    lines = ["pose #2 of #3#pose/NOUN#0.0#0.0"]
    (context,), _ = read(write(tmp_path, {"000001": lines}))
    assert descriptions(context) == [timed.Item("pose #2 of #3")]


def test_spans_without_a_length_mean_the_whole_and_are_counted(tmp_path: Path) -> None:
    lines = ["a#a/X#2.0#2.0", "b#b/X#3.0#1.0", "c#c/X#0.0#nan", "  #x/X#0.0#0.0", "no signs"]
    (context,), report = read(write(tmp_path, {"000001": lines}))
    assert descriptions(context) == [timed.Item(text) for text in "abc"]
    assert report.skipped == {
        "span that can't be right, taken as the whole": 2,
        "empty description": 1,
        "line that isn't a description": 1,
    }


def test_mirrored_copies_come_on_request_and_never_without_their_original(tmp_path: Path) -> None:
    source = HumanML3DSource(mirrored=True)
    contexts, _ = read(write(tmp_path / "both"), source)
    assert [c.id for c in contexts] == ["000001", "000002", "M000001"]
    contexts, report = read(write(tmp_path / "one", listed=["M000001", "000002"]), source)
    assert [c.id for c in contexts] == ["000002"]
    assert report.skipped == {"mirrored copy of a motion in another split": 1}


def test_a_motion_that_is_listed_twice_comes_once_and_is_counted(tmp_path: Path) -> None:
    contexts, report = read(write(tmp_path, listed=["000002", "000001", "000002", "000002"]))
    assert [context.id for context in contexts] == ["000001", "000002"]
    assert report.skipped == {"repeated line in the split's list": 2}


def test_texts_are_read_from_the_zip_as_well(tmp_path: Path) -> None:
    data = write(tmp_path) / "HumanML3D"
    extracted, _ = read(tmp_path)
    with zipfile.ZipFile(data / "texts.zip", "w") as archive:
        for path in (data / "texts").iterdir():
            archive.write(path, f"texts/{path.name}")
            path.unlink()
    (data / "texts").rmdir()
    assert read(tmp_path)[0] == extracted


def zipped(folder: Path, **texts: bytes) -> Path:
    """The texts in a zip, not compressed, and no folder of them."""
    write(folder)
    data = folder / "HumanML3D"
    shutil.rmtree(data / "texts")
    with zipfile.ZipFile(data / "texts.zip", "w") as archive:
        for name in TEXTS:
            content = "\n".join(TEXTS[name]).encode()
            archive.writestr(f"texts/{name}.txt", texts.get(f"t{name}", content))
    return data / "texts.zip"


def test_a_damaged_zip_of_texts_is_an_error_in_words(tmp_path: Path) -> None:
    path = zipped(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"they bow", b"they cow"))
    with pytest.raises(
        SourceError, match=r"texts.zip: damaged zip, got 'Bad CRC.* Download the archive again"
    ):
        read(tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        SourceError, match=r"texts.zip: damaged zip, got .* Download the archive again"
    ):
        read(tmp_path)
    # A bit that says encrypted, in both headers of the first member.
    locked = bytearray(whole)
    locked[6] |= 1
    locked[whole.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    with pytest.raises(SourceError, match=r"texts.zip: damaged zip, got .*encrypted"):
        read(tmp_path)


@pytest.mark.parametrize("in_zip", [True, False])
def test_a_text_that_is_not_utf_8_is_left_out_and_named(tmp_path: Path, in_zip: bool) -> None:
    latin = "somebody d\xe9tours#a/DET#0.0#0.0".encode("latin-1")
    if in_zip:
        zipped(tmp_path, t000002=latin)
    else:
        (write(tmp_path) / "HumanML3D" / "texts" / "000002.txt").write_bytes(latin)
    contexts, report = read(tmp_path)
    assert [context.id for context in contexts] == ["000001"]
    assert report.examples["motion whose text isn't in UTF-8"] == ["000002"]


def test_a_list_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = write(tmp_path) / "HumanML3D" / "train.txt"
    path.write_text("000001\n", encoding="utf-16")
    with pytest.raises(SourceError, match=r"^train.txt: got .*UTF-16.* iconv -f UTF-16 -t UTF-8"):
        read(tmp_path)
    path.write_bytes(b"000001\n\xe9\n")
    with pytest.raises(
        SourceError, match=r"^train.txt: got b'\\xe9' at byte 7, .* iconv -f CP1252"
    ):
        read(tmp_path)


@pytest.mark.parametrize("in_zip", [False, True])
def test_a_mark_before_the_text_of_a_file_is_no_part_of_it(tmp_path: Path, in_zip: bool) -> None:
    data = write(tmp_path) / "HumanML3D"
    plain, _ = read(tmp_path)
    for path in (*data.glob("*.*"), *(data / "texts").iterdir()):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    if in_zip:
        shutil.make_archive(str(data / "texts"), "zip", data / "texts")
        shutil.rmtree(data / "texts")
    assert read(tmp_path)[0] == plain


def test_without_the_data_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    assert SOURCE.locate([tmp_path], "train") is None
    with pytest.raises(SourceError, match=r"github.com/EricGuo5513.*texts.zip"):
        SOURCE.downloads("train")


def test_a_missing_split_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="val.txt: missing"):
        SOURCE.locate([write(tmp_path)], "validation")


def test_an_unknown_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'val'"):
        SOURCE.locate([tmp_path], "val")


def test_a_listed_motion_without_a_text_is_left_out_and_named(tmp_path: Path) -> None:
    contexts, report = read(write(tmp_path, listed=["000001", "000009"]))
    assert [context.id for context in contexts] == ["000001"]
    assert report.skipped == {"motion whose text isn't there": 1}
    assert report.examples == {"motion whose text isn't there": ["000009"]}


def test_the_release_is_read_as_its_repository_has_it(tmp_path: Path) -> None:
    data = write(tmp_path) / "HumanML3D"
    (one, _), _ = read(tmp_path)
    (data / "index.csv").rename(tmp_path / "index.csv")
    assert read(tmp_path)[0][0] == read(data)[0][0] == one
    assert one.media.duration_s == 117 / FPS
    (data / "texts").rename(tmp_path / "texts")
    assert read(tmp_path)[0][0] == one


def test_texts_in_a_folder_of_their_own_and_a_release_one_folder_deeper_are_found(
    tmp_path: Path,
) -> None:
    data = write(tmp_path / "one") / "HumanML3D"
    plain, _ = read(tmp_path / "one")
    (data / "texts").rename(data / "inner")
    (data / "texts").mkdir()
    (data / "inner").rename(data / "texts" / "texts")
    assert read(tmp_path / "one")[0] == plain
    (tmp_path / "two").mkdir()
    data.rename(tmp_path / "two" / "my-motions")
    assert read(tmp_path / "two")[0] == plain


def test_names_in_the_list_may_be_those_of_files(tmp_path: Path) -> None:
    contexts, report = read(write(tmp_path, listed=["000001.npy", "000002.npy\r", "M000001.npy"]))
    assert [context.id for context in contexts] == ["000001", "000002"]
    assert report.skipped == {"mirrored copy": 1}


@pytest.mark.parametrize(
    ("name", "words"),
    [("00001", "'00001', which is a motion of KIT-ML,"), ("walk", "'walk' against")],
)
def test_motions_of_another_release_are_refused(tmp_path: Path, name: str, words: str) -> None:
    folder = write(tmp_path, {name: ["a person walks#a/DET#0.0#0.0"]})
    with pytest.raises(SourceError, match=f"^train.txt: got {words}.*Data of your own"):
        read(folder)


def test_lengths_are_read_with_spaces_and_impossible_ones_are_unknown(tmp_path: Path) -> None:
    path = write(tmp_path) / "HumanML3D" / "index.csv"
    head = "source_path, start_frame, end_frame, new_name\n"
    path.write_text(head + "./x.npy, 0, 117.0, 000001.npy\n./y.npy, 100, 40, 000002.npy\n")
    contexts, report = read(tmp_path)
    assert [context.media.duration_s for context in contexts] == [117 / FPS, None]
    assert "facts" not in contexts[1].annotations
    assert report.examples["length of a motion that can't be"] == ["000002"]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(
        SourceError, match=r"^index.csv: no column end_frame, new_name, start_frame"
    ):
        read(tmp_path)


def test_a_span_beyond_any_motion_is_taken_as_the_whole(tmp_path: Path) -> None:
    (context,), report = read(write(tmp_path, {"000001": ["a#a/X#0.0#1e9", "b#b/X#inf#inf"]}))
    assert descriptions(context) == [timed.Item("a"), timed.Item("b")]
    assert report.skipped == {"span that can't be right, taken as the whole": 2}


def test_a_changed_text_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = write(tmp_path)
    before = SOURCE.locate([folder], "train")
    (folder / "HumanML3D/texts/000002.txt").write_text("they kneel#they/PRON#0.0#0.0\n")
    after = SOURCE.locate([folder], "train")
    assert before is not None and after is not None
    assert before.fingerprint != after.fingerprint


def standing(frames: int) -> np.ndarray:
    """(frames, 22, 3): upright at the origin, facing +z, so the left side is at +x."""
    joints = np.zeros((frames, 22, 3))
    joints[:, :, 1] = 1.0
    for left, right, width in ((1, 2, 0.1), (16, 17, 0.2), (10, 11, 0.1)):
        joints[:, left, 0], joints[:, right, 0] = width, -width
    joints[:, [10, 11], 1] = 0.0
    return joints


def test_facts_of_standing_still() -> None:
    values = {fact.name: fact.value for fact in measure(standing(40))}
    assert values["Length"] == "2.0 s"
    assert values["Way of the hips over the floor"] == "0.0 m, ending 0.0 m from its start"
    assert values["Turning"] == "none in the end"
    assert values["Times a foot comes to rest"] == "left 0, right 0"


def test_facts_of_walking_out_and_back() -> None:
    joints = standing(81)
    way = np.concatenate([np.linspace(0, 2, 41), np.linspace(2, 0, 41)[1:]])
    joints[:, :, 2] += way[:, None]
    values = {fact.name: fact.value for fact in measure(joints)}
    assert values["Way of the hips over the floor"] == "4.0 m, ending 0.0 m from its start"
    assert values["Mean speed"] == "1.0 m/s"


@pytest.mark.parametrize(("degrees", "side"), [(90, "left"), (-180, "right"), (400, "left")])
def test_turning_has_a_side(degrees: float, side: str) -> None:
    joints = standing(60)
    angles = np.radians(np.linspace(0, degrees, 60))
    # A turn to the left, seen from above, takes +z (ahead) towards +x (the left side).
    x, z = joints[:, :, 0].copy(), joints[:, :, 2].copy()
    joints[:, :, 0] = x * np.cos(angles)[:, None] + z * np.sin(angles)[:, None]
    joints[:, :, 2] = -x * np.sin(angles)[:, None] + z * np.cos(angles)[:, None]
    values = {fact.name: fact.value for fact in measure(joints)}
    assert values["Turning"] == f"about {abs(degrees)} degrees to the {side} in the end"


def test_a_foot_that_moves_and_stops_comes_to_rest() -> None:
    joints = standing(60)
    joints[10:20, 10, 2] = np.linspace(0, 0.5, 10)
    joints[20:, 10, 2] = 0.5
    values = {fact.name: fact.value for fact in measure(joints)}
    assert values["Times a foot comes to rest"] == "left 1, right 0"


def test_facts_come_with_the_context_on_request(tmp_path: Path) -> None:
    folder = write(tmp_path)
    source = HumanML3DSource(motion_facts=True)
    with pytest.raises(SourceError, match="new_joints: missing"):
        source.locate([folder], "train")
    joints = folder / "HumanML3D" / "new_joints"
    joints.mkdir()
    for name in ("000001", "000002"):
        np.save(joints / f"{name}.npy", standing(40).astype(np.float32))
    (one, _), _ = read(folder, source)
    assert one.annotations["facts"][0].value == "2.0 s"
    one, other = read(folder)[0]
    assert one.annotations["facts"] == (facts.Item("Length", "5.8 s"),)
    assert "facts" not in other.annotations


@pytest.mark.parametrize("shape", [(40, 263), (40, 21, 3)])
def test_joints_of_another_shape_are_an_error(tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder = write(tmp_path)
    joints = folder / "HumanML3D" / "new_joints"
    joints.mkdir()
    np.save(joints / "000001.npy", np.zeros(shape))
    with pytest.raises(SourceError, match=r"000001.npy: got an array of shape"):
        read(folder, HumanML3DSource(motion_facts=True))


@pytest.mark.parametrize("kind", ["no frame", "empty", "archive", "text"])
def test_a_file_without_joints_is_an_error_in_words(tmp_path: Path, kind: str) -> None:
    joints = write(tmp_path, {"000001": TEXTS["000001"]}) / "HumanML3D" / "new_joints"
    joints.mkdir()
    path = joints / "000001.npy"
    with path.open("wb") as file:
        if kind == "no frame":
            np.save(file, np.zeros((0, 22, 3)))
        elif kind == "archive":
            np.savez(file, joints=np.zeros((4, 22, 3)))
        elif kind == "text":
            np.save(file, np.full((4, 22, 3), "x"))
    with pytest.raises(SourceError, match=r"^000001.npy: .* expected. Make the motions again"):
        read(tmp_path, HumanML3DSource(motion_facts=True))
