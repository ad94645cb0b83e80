"""COCO captions: one JSON file with `images` and `annotations`, and the pictures in a folder nearby.

A picture becomes one pair with its first caption; all of them stand in the column `captions`. Called by `open_source`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.sources.pair import Pair, Source
from pipeline import storage
from pipeline.config import UserError


@dataclass(frozen=True)
class CocoSource(Source):
    """The pictures of a captions file in the order of their ids."""

    url: str

    def pairs(self) -> Iterator[Pair]:
        """In order of image id.

        Raises:
            UserError: not the JSON of COCO's captions, or pictures that are neither nearby nor named by a URL.
        """
        images, captions = self._read()
        folder = self._folder(images)
        for image in images:
            own = captions[image["id"]]
            picture = storage.join(folder, image["file_name"]) if folder else image["coco_url"]
            extra = {"image_id": image["id"], "captions": own}
            yield Pair(image["file_name"], picture, caption=own[0] if own else "", extra=extra)

    def _read(self) -> tuple[list[Mapping[str, Any]], dict[Any, list[str]]]:
        """Images by id, and the captions of each by annotation id."""
        try:
            tree = storage.read_json(self.url)
            if not isinstance(tree, dict):
                raise ValueError(f"a {type(tree).__name__} where an object is wanted")
            images = sorted(tree["images"], key=lambda image: image["id"])
            captions: dict[Any, list[str]] = defaultdict(list)
            for row in sorted(tree["annotations"], key=lambda row: row["id"]):
                captions[row["image_id"]].append(str(row["caption"]).strip())
            if not all("file_name" in image for image in images):
                raise KeyError("file_name")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise UserError(f"{self.url}: not a COCO captions file: {reason}") from None
        return images, captions

    def _folder(self, images: Sequence[Mapping[str, Any]]) -> str | None:
        """Where the first picture lies: beside the file, or where COCO's own archives put it; None for its URL."""
        if not images:
            return None
        here, _, file = self.url.rpartition("/")
        above = storage.join(here, "..") if here else ".."
        split = file.removesuffix(".json").rpartition("_")[2]  # captions_val2017.json -> val2017
        near = [here or ".", *(storage.join(place, split) for place in (here or ".", above, f"{above}/images"))]
        for folder in [*near, f"{above}/images"]:
            if storage.exists(storage.join(folder, images[0]["file_name"])):
                return folder
        if all(image.get("coco_url") for image in images):
            return None
        raise UserError(f"{self.url}: {images[0]['file_name']} is not nearby; put the pictures beside this file")
