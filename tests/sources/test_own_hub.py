"""A dataset of the Hub as a source, from a Hub on loopback, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hub_server import TOKEN, HubServer

UPLOAD = """
import datasets, huggingface_hub
labels = datasets.ClassLabel(names=["cat", "dog"])
number, text = datasets.Value("float32"), datasets.Value("string")
features = datasets.Features(
    {"image": text, "text": text, "objects": {"bbox": [[number]], "category": [labels]},
     "width": datasets.Value("int32"), "height": datasets.Value("int32")}
)
rows = [
    {"image": f"{n}.jpg", "text": f"A pet, number {n}.", "width": 640, "height": 480,
     "objects": {"bbox": [[64, 48, 320, 240]], "category": [n % 2]}}
    for n in range(3)
]
datasets.Dataset.from_list(rows, features=features).to_parquet("train.parquet")
api = huggingface_hub.HfApi()
api.create_repo("user/my-images", repo_type="dataset")
api.upload_file(path_or_fileobj="train.parquet", path_in_repo="data/train-00000-of-00001.parquet",
                repo_id="user/my-images", repo_type="dataset")
"""
GENERATE = """
from mminstruct.cli import run
flags = "--captions_column text --boxes_column objects --box_format xywh --dry_run"
for name in ("user/my-images", "user/no-images"):
    print(run(["generate", name, *flags.split(), "--output_path", "out.jsonl"]))
"""


def test_a_dataset_of_the_hub_is_a_source_and_what_is_not_there_is_told(tmp_path: Path) -> None:
    with HubServer() as server:
        env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url}
        ended = subprocess.run(
            [sys.executable, "-c", UPLOAD + GENERATE],
            cwd=tmp_path,
            env={**env, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
        )
    assert ended.stdout.split()[-2:] == ["0", "2"], ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["media"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg"] * 3
    assert {row["source"] for row in rows} == {"my-images"}
    assert "user/no-images: got " in ended.stderr
