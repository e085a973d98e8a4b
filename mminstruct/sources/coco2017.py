"""COCO in the split of 2017.

**Source:** https://cocodataset.org/#download. Annotations: CC BY 4.0, COCO Consortium.
"""

from mminstruct.sources._base import Download
from mminstruct.sources._coco import CocoSource

SOURCE = CocoSource(
    year=2017,
    archive=Download(
        url="http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
        size_bytes=252_907_541,
        md5="f4bbac642086de4f52a3fdda2de5fa2c",
    ),
)
