"""Under which licence an image is, by the table of licences in its own file, and whose it is.

The numbers in such tables mean what the table says, by address: a name without a known address, or
a number without a table, is unknown.

**Source:** the ``licenses`` of COCO's releases, https://cocodataset.org/#format-data, and the
addresses of https://creativecommons.org/licenses/ and https://spdx.org/licenses/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from mminstruct.schema import Media
from mminstruct.sources._base import ReadReport
from mminstruct.sources._tolerance import published_url

# Licence id of an image -> (SPDX identifier, URL), as in the ``licenses`` table of every release of
# COCO. https://spdx.org/licenses/ has none for the last two.
IMAGE_LICENSES = {
    1: ("CC-BY-NC-SA-2.0", "http://creativecommons.org/licenses/by-nc-sa/2.0/"),
    2: ("CC-BY-NC-2.0", "http://creativecommons.org/licenses/by-nc/2.0/"),
    3: ("CC-BY-NC-ND-2.0", "http://creativecommons.org/licenses/by-nc-nd/2.0/"),
    4: ("CC-BY-2.0", "http://creativecommons.org/licenses/by/2.0/"),
    5: ("CC-BY-SA-2.0", "http://creativecommons.org/licenses/by-sa/2.0/"),
    6: ("CC-BY-ND-2.0", "http://creativecommons.org/licenses/by-nd/2.0/"),
    7: ("LicenseRef-flickr-commons", "http://flickr.com/commons/usage/"),
    8: ("LicenseRef-US-Government-Work", "http://www.usa.gov/copyright.shtml"),
}

# http://farm1.staticflickr.com/<server>/<photo id>_<secret>_<size>.jpg
_FLICKR_FILE = re.compile(r"https?://[\w.-]*flickr\.com/\d+/(\d+)_[0-9a-f]+(?:_\w)?\.jpg")

_CREATIVE_COMMONS = re.compile(
    r"(?:www\.)?creativecommons\.org/(?:licenses/(by(?:-nc)?(?:-nd|-sa)?)|publicdomain/(zero))"
    r"/(1\.0|2\.0|2\.5|3\.0|4\.0)(?:/(?:deed|legalcode)[\w.-]*)?"
)


class ImageSize(msgspec.Struct, gc=False):
    """Width and height in pixels."""

    id: int
    width: int
    height: int


class Photo(ImageSize, gc=False):
    """Where the image is from, as far as the file says."""

    coco_url: str | None = None
    flickr_url: str | None = None
    license: int | None = None
    author: str | None = None
    title: str | None = None


class License(msgspec.Struct, gc=False):
    """A licence of images, in a file's own table."""

    id: int
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Licenses:
    """The table of image licences in a file: id -> SPDX identifier, if it is known, and address."""

    table: dict[int | None, tuple[str | None, str]]

    @classmethod
    def of(cls, entries: Iterable[License]) -> Licenses:
        """Those of a file with that table; an id with two addresses means nothing."""
        urls: dict[int, set[str]] = {}
        for entry in entries:
            urls.setdefault(entry.id, set()).add(entry.url or "")
        return cls({n: (spdx_of(url), url) for n, (url, *more) in urls.items() if url and not more})

    def media(self, image: Photo, file_name: str, report: ReadReport) -> Media:
        """The image's record, with the page on Flickr that names its author."""
        license, license_url = self.table.get(image.license, (None, None))
        photo = _FLICKR_FILE.fullmatch(image.flickr_url or "")
        url = published_url(image.coco_url)
        if image.coco_url and url is None:
            reason = "address of an image that is none or has a signature"
            report.skip(reason, example=f"{image.id:012d}", harmless=True)
        return Media(
            file_name=file_name,
            url=url,
            landing_url=f"https://www.flickr.com/photo.gne?id={photo[1]}" if photo else None,
            width=image.width or None,
            height=image.height or None,
            license=license,
            license_url=license_url or None,
            author=image.author,
            title=image.title,
        )


@lru_cache(maxsize=1024)
def spdx_of(url: str | None) -> str | None:
    """The SPDX identifier for the page of a known licence, or None."""
    page = _page(url or "")
    if common := _CREATIVE_COMMONS.fullmatch(page):
        return f"CC0-{common[3]}" if common[2] else f"CC-{common[1].upper()}-{common[3]}"
    return next((spdx for spdx, known in IMAGE_LICENSES.values() if page == _page(known)), None)


def _page(url: str) -> str:
    return url.strip().split("://")[-1].rstrip("/")
