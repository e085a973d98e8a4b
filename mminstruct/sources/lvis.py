"""LVIS v1: boxes of 1,203 categories on COCO images, and what is known to be absent.

For each image LVIS says of which categories all instances have a box, of which only some have
(``not_exhaustive_category_ids``), and which people looked for and did not find
(``neg_category_ids``). Of all others nothing is known. Mostly of use beside COCO, as in
``COCO2017+LVIS``: there are no captions, and the splits are not COCO's. A category that COCO has
under another name goes by COCO's name, or a couch would be there and a sofa wouldn't.

**Source:** https://www.lvisdataset.org/dataset (format and files). Annotations: CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mminstruct.annotations import labels
from mminstruct.errors import SourceError, UsageError, did_you_mean
from mminstruct.schema import Context
from mminstruct.sources import Download, Files, ReadReport, SourceInfo
from mminstruct.sources._annotation_file import (
    AnnotationFile,
    Layout,
    decode,
    find,
    fingerprint,
)
from mminstruct.sources._coco import (
    Category,
    Instance,
    Instances,
    License,
    Licenses,
    Photo,
    sizes_of,
    whole_boxes,
)

# LVIS's name -> COCO's, where both mean the same things.
COCO_NAMES = {
    "bus_(vehicle)": "bus",
    "car_(automobile)": "car",
    "cellular_telephone": "cell phone",
    "computer_keyboard": "keyboard",
    "doughnut": "donut",
    "fireplug": "fire hydrant",
    "hair_dryer": "hair drier",
    "laptop_computer": "laptop",
    "microwave_oven": "microwave",
    "mouse_(computer_equipment)": "mouse",
    "orange_(fruit)": "orange",
    "remote_control": "remote",
    "ski": "skis",
    "sofa": "couch",
    "television_set": "tv",
    "train_(railroad_vehicle)": "train",
    "wineglass": "wine glass",
}

# Three categories of COCO that LVIS has only in a wider or narrower sense, each with LVIS's names
# of what may be the same object; of two labels the one that says more is first.
_ALIKE = (
    ("necktie", "tie"),
    ("bow-tie", "tie"),
    ("potted plant", "flowerpot"),
    ("sports ball", "ball"),
    ("baseball", "sports ball"),
    ("basketball", "sports ball"),
    ("football (American)", "sports ball"),
    ("soccer ball", "sports ball"),
    ("softball", "sports ball"),
    ("tennis ball", "sports ball"),
    ("volleyball", "sports ball"),
)

_FILE_SPLIT = {"train": "train", "validation": "val"}
_URL = "https://dl.fbaipublicfiles.com/LVIS"

_CITATION = """\
@inproceedings{gupta2019lvis,
  title     = {{LVIS}: A Dataset for Large Vocabulary Instance Segmentation},
  author    = {Gupta, Agrim and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2019}
}"""


class _Image(Photo, gc=False):
    neg_category_ids: list[int] = []
    not_exhaustive_category_ids: list[int] = []


class _File(AnnotationFile, kw_only=True, gc=False):
    images: list[_Image]
    annotations: list[Instance]
    categories: list[Category]
    licenses: list[License] = []


_LAYOUT = Layout(_File, Instances)


@dataclass(frozen=True, slots=True)
class LvisSource:
    """LVIS v1."""

    @property
    def info(self) -> SourceInfo:
        """Facts about the release."""
        return SourceInfo(
            name="LVIS",
            title="LVIS v1",
            description=(
                "Boxes of 1,203 categories on COCO images, with lists of what is not in the image "
                "and of what has more instances than boxes."
            ),
            homepage="https://www.lvisdataset.org/",
            citation=_CITATION,
            license="CC-BY-4.0",
            license_url="https://creativecommons.org/licenses/by/4.0/",
            attribution=(
                "Fine-grained boxes and absent categories are from LVIS v1 "
                "(https://www.lvisdataset.org/), licensed under CC BY 4.0 "
                "(https://creativecommons.org/licenses/by/4.0/); boxes were rescaled to fractions "
                "of the image, and some categories go by COCO's names."
            ),
            media_license="The images are COCO's, from Flickr, each under a licence of its own.",
            splits=tuple(_FILE_SPLIT),
            version="1.0.0",
            prompt_config="llava_joined",
            alike=_ALIKE,
        )

    def downloads(self, split: str) -> tuple[Download, ...]:
        """The split's zip."""
        return (Download(f"{_URL}/{self._file_name(split)}.zip"),)

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The split's file or its zip, in a folder or in its ``annotations`` or ``lvis``."""
        name = self._file_name(split)
        for place in places:
            folders = [place, place / "annotations", place / "lvis"]
            for inside in folders + [folder / f"{name}.zip" for folder in folders]:
                if path := next(find(inside, name), None):
                    return Files({"instances": path}, fingerprint({"instances": path}))
        return None

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The images with a box or an absent category, in ascending order of their id.

        Raises:
            SourceError: the file is damaged or contradicts itself.
        """
        path = files.paths["instances"]
        file, instances = decode(path, _LAYOUT)
        sizes = sizes_of(file.images, path.name)
        categories = {c.id: _label(c.name) for c in file.categories}
        instances.check(sizes, path.name)
        instances.check_categories(categories, path.name)
        licenses = Licenses.of(file.licenses)
        images = sorted(file.images, key=lambda image: image.id)
        groups = instances.grouped([image.id for image in images], sizes, categories)
        for image, found in zip(images, groups, strict=True):
            boxes = whole_boxes(found, report)
            lists = [
                labels.Item(name, present=False)
                for name in _named(image.neg_category_ids, categories, path, image.id)
            ] + [
                labels.Item(name, not_all_boxed=True)
                for name in _named(image.not_exhaustive_category_ids, categories, path, image.id)
            ]
            agreeing, doubtful = labels.agreeing(lists, {box.label for box in boxes})
            if doubtful:
                report.skip("label both present and absent", len(doubtful))
            if not boxes and not agreeing:
                report.skip("image without boxes and labels")
                continue
            report.contexts += 1
            name = f"{image.id:012d}"
            yield Context(
                name,
                licenses.media(image, f"{name}.jpg"),
                boxes=boxes,
                annotations={"labels": agreeing} if agreeing else {},
            )

    def _file_name(self, split: str) -> str:
        if split not in _FILE_SPLIT:
            raise UsageError(f"LVIS has no split {split!r}{did_you_mean(split, _FILE_SPLIT)}")
        return f"lvis_v1_{_FILE_SPLIT[split]}.json"


SOURCE = LvisSource()


def _label(name: str) -> str:
    """COCO's name, or LVIS's own without underscores, as in ``bat_(animal)``."""
    return COCO_NAMES.get(name) or " ".join(name.replace("_", " ").split())


def _named(
    category_ids: list[int], categories: dict[int, str], path: Path, image_id: int
) -> Iterator[str]:
    for category_id in category_ids:
        if category_id not in categories:
            raise SourceError(
                f"{path.name}: image {image_id} names an unknown category, got id {category_id} "
                f"against one of the {len(categories)} ids in 'categories' expected. Download the "
                "file again."
            )
        yield categories[category_id]
