"""COCO in the split of 2014.

**Source:** https://cocodataset.org/#download. Annotations: CC BY 4.0, COCO Consortium.
"""

from mminstruct.sources._base import Download
from mminstruct.sources._coco import CocoSource

SOURCE = CocoSource(
    year=2014,
    archive=Download(
        url="http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
        size_bytes=252_872_794,
        md5="0a379cfc70b0e71301e0f377548639bd",
    ),
)
