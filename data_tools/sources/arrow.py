"""A folder that Hugging Face `datasets` saved with `save_to_disk`: Arrow files with the pictures inside.

A saved picture lies in its file as it is, so a pair is a byte range and nothing is unpacked or copied. Needs pyarrow
alone. Called by `open_source`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from data_tools.sources.pair import CAPTION_COLUMNS, Pair, Source, first_of
from pipeline import storage
from pipeline.config import UserError

STATE_NAME, SPLITS_NAME = "state.json", "dataset_dict.json"
MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


@dataclass(frozen=True)
class ArrowSource(Source):
    """The rows of a saved dataset."""

    url: str
    picture_column: str | None = None
    """None: the first column of pictures."""
    caption_column: str | None = None
    """None: the first of `CAPTION_COLUMNS`."""

    def pairs(self) -> Iterator[Pair]:
        """In order of files and rows.

        Raises:
            UserError: several splits, no column of pictures or captions, or a broken file.
        """
        for file in self._files():
            try:
                yield from self._pairs_of(file)
            except pa.ArrowException as error:
                raise UserError(f"{file}: not a readable Arrow file: {' '.join(str(error).split())}") from None

    def _files(self) -> list[str]:
        splits = storage.join(self.url, SPLITS_NAME)
        if storage.exists(splits):
            names = storage.read_json(splits)["splits"]
            raise UserError(f"{self.url}: holds the splits {', '.join(names)}; give one, as {self.url}/{names[0]}")
        rows = storage.read_json(storage.join(self.url, STATE_NAME))["_data_files"]
        return [storage.join(self.url, row["filename"]) for row in rows]

    def _pairs_of(self, file: str) -> Iterator[Pair]:
        whole = pa.memory_map(str(storage.local_path(file))).read_buffer() if storage.is_local(file) else None
        whole = pa.py_buffer(storage.read_bytes(file)) if whole is None else whole
        name, number = file.rpartition("/")[2], 0
        for batch in pa.ipc.open_stream(whole):
            picture, caption = self._columns(file, batch.schema)
            spans, names = _spans(batch.column(picture), whole)
            others = batch.select([other for other in batch.schema.names if other not in (picture, caption)])
            rows = zip(spans, names, batch.column(caption).to_pylist(), others.to_pylist(), strict=True)
            for span, path, text, extra in rows:
                if span is None and path is None:
                    raise UserError(f"{file}: row {number} has no picture")
                start = bytes(whole[span[0] : span[0] + 4]) if span else b""
                ending = next((end for magic, end in MAGIC.items() if start.startswith(magic)), "bin")
                label = path or f"{name}/{number}.{ending}"
                place = file if path is None or span is not None else path
                yield Pair(label, place, span, caption=_text(text), extra=extra)
                number += 1

    def _columns(self, file: str, schema: pa.Schema) -> tuple[str, str]:
        """The names of the columns with the pictures and with the captions."""
        pictures = [field.name for field in schema if _holds_pictures(field.type)]
        picture = self.picture_column or next(iter(pictures), None)
        caption = self.caption_column or first_of(CAPTION_COLUMNS, schema.names)
        if picture not in pictures:
            raise UserError(f"{file}: no column of pictures among {', '.join(schema.names)}")
        if caption not in schema.names:
            raise UserError(f"{file}: no column named {' or '.join(CAPTION_COLUMNS)}; name it with --caption-column")
        assert picture is not None and caption is not None
        return picture, caption


def _holds_pictures(kind: pa.DataType) -> bool:
    """`datasets.Image` is stored as a struct of bytes and path."""
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}


def _spans(column: pa.StructArray, whole: pa.Buffer) -> tuple[list[tuple[int, int] | None], list[str | None]]:
    """Where in the file the bytes of each picture lie (None: only its path is stored), and the paths."""
    data = column.field("bytes")
    _, offsets, values = data.buffers()
    words = np.int64 if pa.types.is_large_binary(data.type) else np.int32
    ends = np.frombuffer(offsets, words)[data.offset : data.offset + len(data) + 1].astype(np.int64)
    places = (ends + (values.address - whole.address if values else 0)).tolist()  # nothing was copied out of the file
    spans = [span if there else None for span, there in zip(pairwise(places), data.is_valid().to_pylist(), strict=True)]
    return spans, column.field("path").to_pylist()


def _text(value: Any) -> str:
    """A caption, or the first of several."""
    value = value[0] if isinstance(value, list) and value else value
    return str(value or "").strip()
