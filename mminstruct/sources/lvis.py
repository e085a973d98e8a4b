"""LVIS v1: boxes of 1,203 categories on COCO images, and what is known to be absent.

For each image LVIS says of which categories all instances have a box, of which only some have
(``not_exhaustive_category_ids``), and which people looked for and did not find
(``neg_category_ids``). Of all others nothing is known. Mostly of use beside COCO, as in
``COCO2017+LVIS``: there are no captions, and the splits are not COCO's.

**Source:** https://www.lvisdataset.org/dataset (format and files). Annotations: CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mminstruct.annotations import labels
from mminstruct.errors import SourceError, UsageError, did_you_mean
from mminstruct.schema import Context, Media
from mminstruct.sources import Download, Files, ReadReport, SourceInfo
from mminstruct.sources._annotation_file import (
    AnnotationFile,
    Layout,
    decode,
    find,
    fingerprint,
)
from mminstruct.sources._coco import Category, ImageSize, Instance, Instances, sizes_of, whole_boxes

_FILE_SPLIT = {"train": "train", "validation": "val"}
_URL = "https://dl.fbaipublicfiles.com/LVIS"

_CITATION = """\
@inproceedings{gupta2019lvis,
  title     = {{LVIS}: A Dataset for Large Vocabulary Instance Segmentation},
  author    = {Gupta, Agrim and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2019}
}"""


class _Image(ImageSize, gc=False):
    coco_url: str | None = None
    neg_category_ids: list[int] = []
    not_exhaustive_category_ids: list[int] = []


class _File(AnnotationFile, kw_only=True, gc=False):
    images: list[_Image]
    annotations: list[Instance]
    categories: list[Category]


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
                "of the image."
            ),
            media_license=("The images are COCO's, from Flickr under one of eight licences each."),
            splits=tuple(_FILE_SPLIT),
            version="1.0.0",
            prompt_config="llava_joined",
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
        # ``bat_(animal)``
        categories = {c.id: " ".join(c.name.replace("_", " ").split()) for c in file.categories}
        instances.check(sizes, path.name)
        instances.check_categories(categories, path.name)
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
                Media(f"{name}.jpg", url=image.coco_url, width=image.width, height=image.height),
                boxes=boxes,
                annotations={"labels": agreeing} if agreeing else {},
            )

    def _file_name(self, split: str) -> str:
        if split not in _FILE_SPLIT:
            raise UsageError(f"LVIS has no split {split!r}{did_you_mean(split, _FILE_SPLIT)}")
        return f"lvis_v1_{_FILE_SPLIT[split]}.json"


SOURCE = LvisSource()


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
