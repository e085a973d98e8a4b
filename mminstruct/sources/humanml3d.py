"""HumanML3D: descriptions of human motions, with the spans of time that they are about.

From the texts alone by default, which are MIT. With ``motion_facts`` each context also has facts
computed from the joints; text written from those falls under AMASS's terms, which are
non-commercial, and so do the rows. The lengths of motions come from ``index.csv``, which is
published with the texts. Mirrored copies (``M012345``) are left out unless asked for.

**Source:** https://github.com/EricGuo5513/HumanML3D (texts, splits and index: MIT, (c) 2022 Chuan
Guo; format of a line: ``caption#word/POS word/POS#start#end``). Motions:
https://amass.is.tue.mpg.de/license.html, never redistributed.
"""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

import xxhash

from mminstruct.annotations import facts, timed
from mminstruct.errors import SourceError
from mminstruct.late import Late
from mminstruct.resources import shown
from mminstruct.schema import Context, Media, Option
from mminstruct.sources._annotation_file import folders, reader, text_of, wrap_errors
from mminstruct.sources._base import Download, Files, ReadReport, SourceInfo, word_for
from mminstruct.sources._tolerance import OWN_DATA

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = Late("numpy")

OPTIONS = {
    "motion_facts": Option(
        bool, "also facts computed from the joints; the rows then are non-commercial (AMASS)"
    ),
    "mirrored": Option(bool, "also the mirrored copies of motions"),
}

FPS = 20
_FILE_SPLIT = {"train": "train", "validation": "val", "test": "test"}
_MOTION_LICENSE = "LicenseRef-AMASS"
_MOTION_LICENSE_URL = "https://amass.is.tue.mpg.de/license.html"
_NAME = re.compile(r"M?\d{6}")
_FOLDERS = ("", "HumanML3D", "humanml3d")
_JOINTS = 22
# Indices of joints, as in SMPL; y is up, metres.
_PELVIS, _LEFT_HIP, _RIGHT_HIP, _LEFT_FOOT, _RIGHT_FOOT = 0, 1, 2, 10, 11
_LEFT_SHOULDER, _RIGHT_SHOULDER = 16, 17
_FOOT_RESTS_BELOW_M_PER_S = 0.25
_SHORTEST_REST_FRAMES = 3
_LONGEST_S = 60.0

_CITATION = """\
@InProceedings{Guo_2022_CVPR,
  author    = {Guo, Chuan and Zou, Shihao and Zuo, Xinxin and Wang, Sen and Ji, Wei and
               Li, Xingyu and Cheng, Li},
  title     = {Generating Diverse and Natural 3D Human Motions From Text},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages     = {5152--5161},
  year      = {2022}
}"""

_STEPS = (
    "its terms forbid passing the motions on, so get them yourself: (1) clone "
    "https://github.com/EricGuo5513/HumanML3D and unzip HumanML3D/texts.zip there; (2) give the "
    "folder that has HumanML3D in it as the storage path (data_dir). With motion_facts, make "
    "HumanML3D/new_joints as its README says (this needs an AMASS account) before that"
)

Joints: TypeAlias = "NDArray[np.floating[Any]]"


@dataclass(frozen=True, slots=True)
class HumanML3DSource:
    """HumanML3D.

    Attributes:
        motion_facts: compute facts from the joints, under the motions' own terms.
        mirrored: take the mirrored copies, too.
    """

    motion_facts: bool = False
    mirrored: bool = False

    @property
    def info(self) -> SourceInfo:
        """Facts about the release; its licence is the motions' where facts come from them."""
        mit = "https://github.com/EricGuo5513/HumanML3D/blob/main/LICENSE"
        return SourceInfo(
            name="HUMANML3D",
            title="HumanML3D",
            description=(
                "Human motions of two to ten seconds, each with about three descriptions written "
                "by people, some of them of a span of the motion."
            ),
            homepage="https://github.com/EricGuo5513/HumanML3D",
            citation=_CITATION,
            license=_MOTION_LICENSE if self.motion_facts else "MIT",
            license_url=_MOTION_LICENSE_URL if self.motion_facts else mit,
            attribution=(
                "Descriptions are from HumanML3D (https://github.com/EricGuo5513/HumanML3D), "
                f"(c) 2022 Chuan Guo, MIT ({mit})"
                + (
                    "; facts were computed from its motions, which are from AMASS "
                    f"({_MOTION_LICENSE_URL}) for non-commercial research alone."
                    if self.motion_facts
                    else "."
                )
            ),
            media_license=(
                "The motions fall under the terms of AMASS: non-commercial research alone, no "
                "redistribution."
            ),
            splits=tuple(_FILE_SPLIT),
            fitted=False,
            prompt_config="motion",
            modality="motion",
        )

    def downloads(self, split: str) -> tuple[Download, ...]:
        """Never: the user gets the data.

        Raises:
            SourceError: always, with the steps.
        """
        self.file_names(split)
        raise SourceError(f"HUMANML3D: no folder HumanML3D with texts and split files; {_STEPS}.")

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The texts (a folder or its zip), the split's file, and what else is there.

        Raises:
            SourceError: some of it is there and what is needed isn't.
        """
        name = self.file_names(split)["ids"]
        for group in (group for place in places for group in _groups(place)):
            texts = _first(group, "texts", "texts.zip")
            ids, index = _first(group, name), _first(group, "index.csv")
            if texts is None or ids is None:
                if texts is not None and index is not None:
                    raise _missing(name, texts.parent, f"texts without the split {split!r}")
                continue
            paths = {"texts": _inner_folder(texts), "ids": ids}
            if index is not None:
                paths["index"] = index
            if self.motion_facts:
                joints = _first(group, "new_joints")
                if joints is None or not joints.is_dir():
                    raise _missing("new_joints", ids.parent, "motion_facts without the joints")
                paths["joints"] = joints
            return Files(paths, _fingerprint(paths))
        return None

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The split's motions that have a description, in ascending order of their id.

        Raises:
            SourceError: a listed motion has no texts, or its joints aren't joints.
        """
        lines = text_of(files.paths["ids"]).split("\n")
        listed = [PurePath(line.strip()).stem for line in lines if line.strip()]
        known = set(listed)
        if len(known) < len(listed):
            reason = "repeated line in the split's list"
            report.skip(reason, len(listed) - len(known), harmless=True)
        _check_names(sorted(known), files.paths["ids"].name)
        lengths_s = _lengths_s(files.paths["index"], report) if "index" in files.paths else {}
        read_text = reader(files.paths["texts"])
        for name in sorted(known):
            original = name.removeprefix("M")
            if name != original and not self.mirrored:
                report.skip("mirrored copy", example=name, harmless=True)
                continue
            if original not in known:
                reason = "mirrored copy of a motion in another split"
                report.skip(reason, example=name, harmless=True)
                continue
            if (text := read_text(f"{name}.txt")) is None:
                report.skip("motion whose text isn't there", example=name)
                continue
            try:
                lines = text.decode("utf-8-sig").splitlines()
            except UnicodeDecodeError:
                report.skip("motion whose text isn't in UTF-8", example=name)
                continue
            descriptions = tuple(_descriptions(lines, name, report))
            if not descriptions:
                report.skip("motion without a description", example=name)
                continue
            length_s = lengths_s.get(original)
            found = {"timed": descriptions, "facts": self._facts(files, name, length_s)}
            report.contexts += 1
            yield Context(
                name,
                Media(
                    f"{name}.npy",
                    modality="motion",
                    duration_s=length_s,
                    license=_MOTION_LICENSE,
                    license_url=_MOTION_LICENSE_URL,
                ),
                annotations={kind: items for kind, items in found.items() if items},
            )

    def _facts(self, files: Files, name: str, length_s: float | None) -> tuple[facts.Item, ...]:
        if not self.motion_facts:
            return (facts.Item("Length", f"{length_s:.1f} s"),) if length_s else ()
        path = files.paths["joints"] / f"{name}.npy"
        try:
            joints = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise SourceError(
                f"{path.name}: can't be read, got '{error}' against an array of joints expected. "
                "Make the motions again as HumanML3D's README says."
            ) from error
        if not _are_joints(joints):
            got = f"an array of shape {joints.shape}" if hasattr(joints, "shape") else "an archive"
            raise SourceError(
                f"{path.name}: got {got} against finite numbers of shape (frames, {_JOINTS}, 3) "
                "with at least one frame expected. Make the motions again."
            )
        return measure(joints)

    def file_names(self, split: str) -> dict[str, str]:
        """Role -> name."""
        return {"texts": "texts", "ids": f"{word_for(split, self.info.name, _FILE_SPLIT)}.txt"}


SOURCE = HumanML3DSource()


def _groups(place: Path) -> Iterator[list[Path]]:
    """Folders over which one copy of the data may be spread.

    The release's repository has ``index.csv`` in its root, and the lists in ``HumanML3D``.
    """
    known = [place / name for name in _FOLDERS]
    above = [place.parent] if place.name in _FOLDERS else []
    yield [*known, *above]
    yield from ([folder] for folder in folders([place]) if folder not in known)


def _first(group: Sequence[Path], *names: str) -> Path | None:
    return next((f / name for f in group for name in names if (f / name).exists()), None)


def _missing(name: str, folder: Path, got: str) -> SourceError:
    return SourceError(f"{name}: missing in {shown(folder)}, got {got}; {_STEPS}.")


def _inner_folder(texts: Path) -> Path:
    """The folder in a folder of texts that some programs unzip into."""
    inner = texts / texts.name
    return inner if inner.is_dir() and not any(texts.glob("*.txt")) else texts


def _check_names(listed: Sequence[str], where: str) -> None:
    other = [name for name in listed if not _NAME.fullmatch(name)]
    if len(other) * 2 > len(listed):
        is_kit = re.fullmatch(r"M?\d{5}", other[0])
        raise SourceError(
            f"{where}: got {other[0]!r}{', which is a motion of KIT-ML,' if is_kit else ''} "
            "against HumanML3D's names of six digits expected. Rows would name its makers and "
            f"licence. {OWN_DATA}"
        )


def _are_joints(loaded: Any) -> bool:
    return (
        isinstance(loaded, np.ndarray)
        and loaded.dtype.kind in "fiu"
        and loaded.ndim == 3
        and loaded.shape[1:] == (_JOINTS, 3)
        and len(loaded) > 0
        and bool(np.isfinite(loaded).all())
    )


def measure(joints: Joints) -> tuple[facts.Item, ...]:
    """What the joints of a motion say in words.

    Args:
        joints: (T, 22, 3) with T > 0, metres, y up, 20 frames a second, joints in SMPL's order.
    """
    seconds = len(joints) / FPS
    on_floor = joints[:, _PELVIS][:, [0, 2]]
    steps_m = np.linalg.norm(np.diff(on_floor, axis=0), axis=1)
    way_m, apart_m = float(steps_m.sum()), float(np.linalg.norm(on_floor[-1] - on_floor[0]))
    heights_m = joints[:, _PELVIS, 1]
    found = {
        "Length": f"{seconds:.1f} s",
        "Way of the hips over the floor": f"{way_m:.1f} m, ending {apart_m:.1f} m from its start",
        "Mean speed": f"{way_m / seconds:.1f} m/s",
        "Turning": _turning(joints),
        "Hips between": f"{heights_m.min():.1f} and {heights_m.max():.1f} m above the floor",
        "Times a foot comes to rest": (
            f"left {_rests(joints[:, _LEFT_FOOT])}, right {_rests(joints[:, _RIGHT_FOOT])}"
        ),
    }
    return tuple(facts.Item(name, value) for name, value in found.items())


def _turning(joints: Joints) -> str:
    """How far the body has turned at the end, seen from above."""
    across = (
        joints[:, _LEFT_HIP]
        - joints[:, _RIGHT_HIP]
        + joints[:, _LEFT_SHOULDER]
        - joints[:, _RIGHT_SHOULDER]
    )
    # From right to left; turning to the left takes it from x towards -z.
    angles = np.unwrap(np.arctan2(-across[:, 2], across[:, 0]))
    degrees = round(math.degrees(float(angles[-1] - angles[0])) / 10) * 10
    if degrees == 0:
        return "none in the end"
    return f"about {abs(degrees)} degrees to the {'left' if degrees > 0 else 'right'} in the end"


def _rests(foot: Joints) -> int:
    """How often a foot comes to rest after it moved; (T, 3), metres."""
    speeds = np.linalg.norm(np.diff(foot, axis=0), axis=1) * FPS
    rests, length, has_moved = 0, 0, False
    for is_slow in speeds < _FOOT_RESTS_BELOW_M_PER_S:
        length = length + 1 if is_slow else 0
        has_moved = has_moved or not is_slow
        if length == _SHORTEST_REST_FRAMES and has_moved:
            rests, has_moved = rests + 1, False
    return rests


def _descriptions(lines: Sequence[str], owner: str, report: ReadReport) -> Iterator[timed.Item]:
    """The descriptions of one motion, those of the whole first, then by their spans."""
    found: dict[timed.Item, None] = {}
    for line in filter(str.strip, lines):
        # The caption may have a # of its own.
        caption, *parts = line.strip().rsplit("#", 3)
        text = " ".join(caption.split())
        try:
            start_s, end_s = map(_seconds, parts[1:])
        except ValueError:
            report.skip("line that isn't a description", example=owner)
            continue
        if not text:
            report.skip("empty description", example=owner)
            continue
        is_span = 0 <= start_s < end_s <= _LONGEST_S
        if not is_span and (start_s, end_s) != (0.0, 0.0):
            reason = "span that can't be right, taken as the whole"
            report.skip(reason, example=owner, harmless=True)
        item = timed.Item(text, start_s, end_s) if is_span else timed.Item(text)
        if item in found:
            report.skip("repeated description", example=owner, harmless=True)
        found[item] = None
    yield from sorted(found, key=lambda item: (item.start_s is not None, item.start_s or 0.0))


def _seconds(text: str) -> float:
    """``nan`` occurs and means 0, as in the release's own loading code."""
    value = float(text)
    return 0.0 if math.isnan(value) else value


def _lengths_s(path: Path, report: ReadReport) -> dict[str, float]:
    """Motion's name -> length in seconds, where the index says where it ends."""
    lengths = {}
    rows = csv.DictReader(io.StringIO(text_of(path), newline=""), skipinitialspace=True)
    columns = {name.strip(): name for name in rows.fieldnames or () if name}
    if missing := {"start_frame", "end_frame", "new_name"} - columns.keys():
        raise SourceError(
            f"{path.name}: no column {', '.join(sorted(missing))}, got {', '.join(columns)} "
            "against start_frame, end_frame and new_name expected. Get the file again."
        )
    for row in rows:
        name = str(row[columns["new_name"]]).strip().removesuffix(".npy")
        try:
            start, end = (int(float(row[columns[c]])) for c in ("start_frame", "end_frame"))
        except (ValueError, TypeError, OverflowError):
            start, end = 0, 0
        if 0 <= start < end:
            lengths[name] = (end - start) / FPS
        elif end >= 0:
            report.skip("length of a motion that can't be", example=name, harmless=True)
    return lengths


def _fingerprint(paths: dict[str, Path]) -> str:
    """Digest of the bytes of all files, those of folders by name."""
    whole = xxhash.xxh3_128()
    for role in sorted(paths):
        path = paths[role]
        pattern = "*.npy" if role == "joints" else "*.txt"
        for file in sorted(path.glob(pattern)) if path.is_dir() else [path]:
            whole.update(f"{role} {file.name if path.is_dir() else ''}\n".encode())
            with wrap_errors(file):
                whole.update(file.read_bytes())
    return whole.hexdigest()
