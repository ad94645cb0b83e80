"""A folder that Hugging Face `datasets` saved with `save_to_disk`: Arrow files with the pictures inside.

A saved picture lies in its file as it is, so a pair is a byte range and nothing is unpacked or copied. Needs pyarrow
alone. Called by `open_source`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from data_tools.sources.pair import CAPTION_COLUMNS, Pair, Source, ending_of, first_of, no_column, text_of
from data_tools.sources.parquet import holds_bytes, holds_pictures
from pipeline import storage
from pipeline.config import UserError

STATE_NAME, SPLITS_NAME = "state.json", "dataset_dict.json"


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
            others = batch.select(_others(batch.schema, picture, caption))
            rows = zip(spans, names, batch.column(caption).to_pylist(), others.to_pylist(), strict=True)
            for span, path, text, extra in rows:
                if span is None and path is None:
                    raise UserError(f"{file}: row {number} has no picture")
                start = bytes(whole[span[0] : span[0] + 4]) if span else b""
                label = path or f"{name}/{number}.{ending_of(start)}"
                place = file if path is None or span is not None else path
                yield Pair(label, place, span, caption=text_of(text).strip(), extra=extra)
                number += 1

    def _columns(self, file: str, schema: pa.Schema) -> tuple[str, str]:
        """The names of the columns with the pictures and with the captions."""
        pictures = [field.name for field in schema if holds_pictures(field.type)]
        picture = self.picture_column or next(iter(pictures), None)
        caption = self.caption_column or first_of(CAPTION_COLUMNS, schema.names)
        if picture not in pictures:
            reason = no_column(picture, schema.names) if picture else f"no pictures in {', '.join(schema.names)}"
            raise UserError(f"{file}: {reason}; name the column of pictures with --picture-column")
        if caption not in schema.names:
            reason = no_column(caption or "caption", schema.names)
            raise UserError(f"{file}: {reason}; name the captions with --caption-column")
        assert picture is not None and caption is not None
        return picture, caption


def _others(schema: pa.Schema, picture: str, caption: str) -> list[str]:
    """The further columns: no bytes, and the captions only where there are several to a picture."""
    plain = [field.name for field in schema if not holds_bytes(field.type)]
    return [name for name in plain if name != caption or pa.types.is_list(schema.field(name).type)]


def _spans(column: pa.StructArray, whole: pa.Buffer) -> tuple[list[tuple[int, int] | None], list[str | None]]:
    """Where in the file the bytes of each picture lie (None: only its path is stored), and the paths."""
    data = column.field("bytes")
    _, offsets, values = data.buffers()
    words = np.int64 if pa.types.is_large_binary(data.type) else np.int32
    ends = np.frombuffer(offsets, words)[data.offset : data.offset + len(data) + 1].astype(np.int64)
    places = (ends + (values.address - whole.address if values else 0)).tolist()  # nothing was copied out of the file
    spans = [span if there else None for span, there in zip(pairwise(places), data.is_valid().to_pylist(), strict=True)]
    return spans, column.field("path").to_pylist()
