"""OpenAI's token counts without network: the files that ``tiktoken`` would fetch, and the bill."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import tiktoken

_URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"


def write_tokenizer_files(folder: Path) -> Path:
    """Fill a folder for TIKTOKEN_CACHE_DIR from the package ``bpe-openai``; tiktoken checks it."""
    folder.mkdir()
    spec = importlib.util.find_spec("bpe_openai")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("bpe-openai is not installed; pip install -e '.[dev]'")
    for name in ("cl100k_base", "o200k_base"):
        packed = Path(spec.origin).parent / "data" / f"{name}.tiktoken.gz"
        key = hashlib.sha1(_URL.format(name).encode()).hexdigest()
        (folder / key).write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


def billed_prompt_tokens(body: dict[str, Any]) -> int:
    """What OpenAI's usage figure says of a chat: three a message, role, content, three at last."""
    encoding = tiktoken.get_encoding("o200k_base")
    texts = [text for message in body["messages"] for text in message.values()]
    return sum(len(encoding.encode(text)) for text in texts) + 3 * len(body["messages"]) + 3
