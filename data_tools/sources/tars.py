"""WebDataset tars, img2dataset's and others: listed by headers, read sample by sample. Called by `open_source`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_tools.sources.pair import PICTURE_ENDINGS, Pair, Source
from data_tools.tars import headers_of, sample_spans
from pipeline.config import UserError
from pipeline.data.tar import TarError, metadata_of, parse_samples


@dataclass(frozen=True)
class TarSource(Source):
    """Every sample with a picture; its `json` member gives the further columns that the first sample's has."""

    urls: tuple[str, ...]

    def pairs(self) -> Iterator[Pair]:
        """In order of tars and samples.

        Raises:
            UserError: a tar is broken or compressed.
        """
        nothing = dict.fromkeys(self.late_columns())
        for url in self.urls:
            try:
                with headers_of(url) as headers:
                    for sample in sample_spans(headers):
                        ending = next((f".{e}" for e in sample.extensions if f".{e}" in PICTURE_ENDINGS), None)
                        if ending:
                            yield Pair(sample.key + ending, url, sample.span, in_tar=True, extra=nothing)
            except TarError as error:
                raise UserError(f"{url}: not a whole, uncompressed tar: {error}") from None

    def late_columns(self) -> Mapping[str, str]:
        """Of the first sample's metadata; numbers as double, for the next sample may have a fraction."""
        try:
            with headers_of(self.urls[0]) as headers:
                first = next(sample_spans(headers), None)
                sample = bytes(headers[slice(*first.span)]) if first else b""
            fields = json.loads(metadata_of(parse_samples(sample)[0])) if first else {}
        except ValueError:
            return {}
        kinds = {bool: "bool", int: "double", float: "double"}
        return {name: kinds.get(type(value), "string") for name, value in fields.items() if name != "caption"}
