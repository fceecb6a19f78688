"""Published files: their checksums, and fetching them from the network."""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from .._support.atomic_file import atomic_file
from .images import DataError

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60.0


def check_md5(content: bytes, published_md5: str, source: str) -> None:
    """Raise DataError, which names `source`, where `content` is not what was published."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != published_md5:
        raise DataError(
            f"{source} is not the published file (md5 {md5}, published {published_md5}): it is damaged or "
            "altered. Fetch it again, or pass verify=False to read it as it is"
        )


def download_file(url: str, path: Path, published_md5: str) -> None:
    """Fetch `url` into `path`, with a progress bar; `path` appears only when the whole file is there and is right.

    Raises ConnectionError where the network fails, DataError where the file's md5 is not `published_md5`.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with atomic_file(path) as file:
        for chunk in _fetch(url, path):
            file.write(chunk)
            digest.update(chunk)
        if digest.hexdigest() != published_md5:
            raise DataError(
                f"{url} gave a file with md5 {digest.hexdigest()}, published is {published_md5}: it was "
                "cut short or altered on the way, and is not kept. Try again"
            )


def _fetch(url: str, path: Path) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length")
            with tqdm(desc=path.name, total=length and int(length), unit="B", unit_scale=True) as progress:
                while chunk := response.read(_CHUNK_BYTES):
                    yield chunk
                    progress.update(len(chunk))
    except (OSError, HTTPException) as error:
        raise ConnectionError(f"cannot download {url} ({error}); fetch it otherwise, and save it as {path}") from error
