"""A folder tree of pictures, each with its caption in a .txt or .json of the same name. Called by `open_source`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_tools.sources.pair import PICTURE_ENDINGS, Pair, Source
from pipeline import storage

CAPTION_ENDINGS = (".txt", ".json")


@dataclass(frozen=True)
class FolderSource(Source):
    """Every picture of a folder tree, with the caption in the file of the same name that ends in .txt or .json."""

    url: str
    sizes: Mapping[str, int]
    """Every visible file of the tree, by its path inside the folder; in bytes."""

    def pairs(self) -> Iterator[Pair]:
        """In order of relative path."""
        for name in sorted(self.sizes):
            if name.lower().endswith(PICTURE_ENDINGS):
                stem = name.rpartition(".")[0]
                caption = next((stem + end for end in CAPTION_ENDINGS if stem + end in self.sizes), None)
                caption_file = storage.join(self.url, caption) if caption else None
                num_bytes = self.sizes[name] + (self.sizes[caption] if caption else 0)
                yield Pair(name, storage.join(self.url, name), caption_file=caption_file, num_bytes=num_bytes)
