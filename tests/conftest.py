"""Shared fixtures. Nothing here or in any test leaves the machine or the temporary folder."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

# A shell starts what runs in its background with SIGINT ignored, which commands would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before `datasets` is imported: its caches are fixed then.
_HOME = tempfile.TemporaryDirectory(prefix="mminstruct-tests-")
os.environ["HF_HOME"] = _HOME.name
os.environ["HF_HUB_OFFLINE"] = "1"
for _name in ("OPENAI_API_KEY", "TGI_API_KEY", "HF_TOKEN", "HF_DATASETS_CACHE"):
    os.environ.pop(_name, None)

from tokenizer_files import write_tokenizer_files  # noqa: E402

os.environ["TIKTOKEN_CACHE_DIR"] = str(write_tokenizer_files(Path(_HOME.name) / "tiktoken"))

import asyncio  # noqa: E402
import json  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
from loopback import LoopbackServer  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--uvloop`` runs everything on its event loops, as a program that installed it does."""
    parser.addoption("--uvloop", action="store_true")


def pytest_configure(config: pytest.Config) -> None:
    """Let asyncio make the loops that were asked for."""
    if config.getoption("--uvloop"):
        import uvloop

        os.environ["TESTS_ON_UVLOOP"] = "1"  # for `running`, which starts others
        with warnings.catch_warnings():  # policies go from Python 3.16 on
            warnings.simplefilter("ignore", DeprecationWarning)
            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


@pytest.fixture(autouse=True)
def nothing_in_the_default_store() -> Iterator[None]:
    """No test finds the answers of another one."""
    yield
    for file in (Path(_HOME.name) / "mminstruct").glob("responses.sqlite*"):
        file.unlink()


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    """A server that answers everything well, until a test sets `answer`."""
    with LoopbackServer() as running:
        yield running


def coco_files(
    folder: Path, images: int, *, year: int = 2017, split: str = "train", edit: Any = None
) -> Path:
    """Write an invented COCO split below ``folder`` and return it.

    Args:
        folder: becomes the data_dir.
        images: how many, with two captions and two boxes each.
        year: 2014 or 2017.
        split: train or val.
        edit: called with the captions and the instances file before they are written.
    """
    prefix = f"COCO_{split}2014_" if year == 2014 else ""
    records = [
        {
            "id": number,
            "file_name": f"{prefix}{number:012d}.jpg",
            "width": 640,
            "height": 480,
            "license": 4,
            "coco_url": f"http://images.cocodataset.org/{split}{year}/{prefix}{number:012d}.jpg",
            "flickr_url": f"http://farm1.staticflickr.com/1/{number}_ab12_z.jpg",
        }
        for number in range(1, images + 1)
    ]
    kinds = ("by-nc-sa", "by-nc", "by-nc-nd", "by", "by-sa", "by-nd")
    pages = [f"creativecommons.org/licenses/{kind}/2.0/" for kind in kinds]
    pages += ["flickr.com/commons/usage/", "www.usa.gov/copyright.shtml"]
    # The eight of COCO, in its order.
    table = [{"id": number, "url": f"http://{page}"} for number, page in enumerate(pages, 1)]
    captions = {
        "info": {},
        "licenses": table,
        "images": records,
        "annotations": [
            {"id": 2 * n + k, "image_id": n, "caption": f"Invented scene {n}, seen by writer {k}. "}
            for n in range(1, images + 1)
            for k in (0, 1)
        ],
    }
    instances = {
        "info": {},
        "licenses": table,
        "images": records,
        "categories": [
            {"supercategory": "animal", "id": 18, "name": "dog"},
            {"supercategory": "person", "id": 1, "name": "person"},
        ],
        "annotations": [
            {
                "id": 2 * n + k,
                "image_id": n,
                "category_id": category,
                "bbox": [10.0 * k + n % 50, 20.0, 100.0, 200.0],
                "area": 20000.0,
                "iscrowd": 0,
                "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]],
            }
            for n in range(1, images + 1)
            for k, category in ((0, 18), (1, 1))
        ],
    }
    if edit is not None:
        edit(captions, instances)
    target = folder / "annotations"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"captions_{split}{year}.json").write_text(json.dumps(captions))
    (target / f"instances_{split}{year}.json").write_text(json.dumps(instances))
    return folder


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Path:
    """A data_dir with an invented COCO 2017 train split of six images."""
    return coco_files(tmp_path / "coco", 6)
