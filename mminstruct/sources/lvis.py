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

import msgspec

from mminstruct.annotations import labels
from mminstruct.checks.vocabulary import Vocabulary
from mminstruct.schema import Context
from mminstruct.sources._annotation_file import (
    AnnotationFile,
    Layout,
    decode,
    files_of,
    find_first,
    folders,
)
from mminstruct.sources._base import Download, Files, ReadReport, SourceInfo, word_for
from mminstruct.sources._coco import Category, Instance, Instances, categories_of, usable_images
from mminstruct.sources._image_licenses import License, Licenses, Photo

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


class _Called(Category, gc=False):
    synonyms: list[str] = []


class _Passed(msgspec.Struct, gc=False):
    """An annotation of which nothing is read."""


class _NoColumns:
    def add(self, annotations: list[_Passed]) -> None:
        """Keep nothing."""


class _CategoriesFile(AnnotationFile, kw_only=True, gc=False):
    annotations: list[_Passed]
    categories: list[_Called]


_CATEGORIES = Layout(_CategoriesFile, _NoColumns, "box", "bbox", "caption")
_LAYOUT = Layout(_File, Instances, "box", "bbox", "caption")


@dataclass(frozen=True, slots=True)
class LvisSource:
    """LVIS v1."""

    info = SourceInfo(
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
        fitted=False,
        prompt_config="llava_joined",
        alike=_ALIKE,
    )

    def downloads(self, split: str) -> tuple[Download, ...]:
        """The split's zip."""
        return (Download(f"{_URL}/{self.file_names(split)['instances']}.zip"),)

    def locate(self, places: Sequence[Path], split: str) -> Files | None:
        """The split's file or its zip, in a folder or in its ``annotations`` or ``lvis``."""
        name = self.file_names(split)["instances"]
        near = folders(places, "annotations", "lvis")
        path = find_first([*near, *(folder / f"{name}.zip" for folder in near)], name)
        return files_of({"instances": path} if path else {})

    def read(self, files: Files, report: ReadReport) -> Iterator[Context]:
        """The images with a box or an absent category, in ascending order of their id.

        Raises:
            SourceError: the file is damaged or contradicts itself.
        """
        path = files.paths["instances"]
        file, instances = decode(path, _LAYOUT, report)
        categories = categories_of(file.categories, path.name, _label)
        licenses = Licenses.of(file.licenses)
        instances.count_strays({image.id for image in file.images}, report)
        images = usable_images(file.images, path.name, report)
        wanted = sorted(images)
        groups = instances.group(images, wanted, categories, path.name, report)
        for image, boxes in zip(map(images.__getitem__, wanted), groups, strict=True):
            absent, partly = image.neg_category_ids, image.not_exhaustive_category_ids
            name = f"{image.id:012d}"
            if unknown := {*absent, *partly} - categories.keys():
                reason = "label of a category that isn't in the file"
                report.skip(reason, len(unknown), example=name)
            lists = [
                labels.Item(categories[i], present=False) for i in absent if i in categories
            ] + [labels.Item(categories[i], not_all_boxed=True) for i in partly if i in categories]
            agreeing = report.agreeing(lists, boxes, example=name)
            if not boxes and not agreeing:
                report.skip("image without boxes and labels", example=name)
                continue
            report.contexts += 1
            yield Context(
                name,
                licenses.media(image, f"{name}.jpg", report),
                boxes=tuple(boxes),
                annotations={"labels": agreeing} if agreeing else {},
            )

    def vocabulary(self, files: Files) -> Vocabulary:
        """The categories with the synonyms that the file has for them.

        Raises:
            SourceError: the file is damaged.
        """
        file, _ = decode(files.paths["instances"], _CATEGORIES, ReadReport())
        words = {_label(c.name): [_plain(word) for word in c.synonyms] for c in file.categories}
        return Vocabulary.of(words)

    def file_names(self, split: str) -> dict[str, str]:
        """Role -> name."""
        return {"instances": f"lvis_v1_{word_for(split, self.info.name, _FILE_SPLIT)}.json"}


SOURCE = LvisSource()


def _label(name: str) -> str:
    """COCO's name, or LVIS's own without underscores, as in ``bat (animal)``."""
    return COCO_NAMES.get(name) or _plain(name)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
