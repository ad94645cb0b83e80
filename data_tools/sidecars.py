"""The small files by which other readers open our tars, from the same offsets: DALI, wids, open_clip, Energon.

webdataset, img2dataset's tools and Hugging Face datasets need none. A shard's own files are written by its writer,
those of the whole dataset at the end. Called by `data_tools.finish`, `data_tools.index` and the repair.
"""

from collections.abc import Iterable, Sequence

import yaml

from data_tools.tars import PICTURES, SampleSpan
from pipeline import storage
from pipeline.data.shards import Manifest
from pipeline.data.tar import BLOCK, TarSample, padded

ENERGON_FOLDER = ".nv-meta"
ENERGON_VERSION = "7.4.1"
"""The release whose files these are."""


class DaliIndex:
    """The lines of a DALI index, gathered while a tar of ours is written or after one was listed."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._end = 0
        self.is_valid = True
        """DALI reads names without spaces and of ASCII alone."""

    def passing(self, samples: Iterable[TarSample]) -> Iterable[TarSample]:
        """The samples as they come, noted on their way into `write_samples`."""
        for sample in samples:
            parts = []
            for extension in sorted(sample.members):
                size = len(sample.members[extension])
                parts.append(f"{extension} {self._end + BLOCK} {size} {sample.key}.{extension}")
                self._end += BLOCK + padded(size)
            self._lines.append(" ".join(parts))
            yield sample

    def add(self, sample: SampleSpan) -> None:
        """Note a sample of a tar that is there already."""
        self.is_valid = self.is_valid and all(
            member.name.isascii() and " " not in member.name for member in sample.members
        )
        parts = zip(sample.extensions, sample.members, strict=True)
        self._lines.append(" ".join(f"{end} {member.start} {member.size} {member.name}" for end, member in parts))

    def text(self) -> str:
        """The file: `v1.2 n`, then for each sample `extension offset size name` of every member."""
        return "\n".join([f"v1.2 {len(self._lines)}", *self._lines]) + "\n"

    def save(self, url: str, shard: str) -> None:
        """Write the index of `shard` beside it."""
        storage.write_bytes(storage.join(url, dali_name(shard)), self.text().encode())


def dali_name(shard: str) -> str:
    """`00000.tar` -> `00000.idx`."""
    return f"{shard.removesuffix('.tar')}.idx"


def write_sidecars(url: str, manifest: Manifest, extensions: Sequence[str]) -> None:
    """Write the files that describe the whole dataset.

    Args:
        extensions: members of a sample; what is no picture and no caption is left to who knows it.
    """
    counts = {shard.name: shard.num_samples for shard in manifest.shards}
    storage.write_json(storage.join(url, "sizes.json"), counts)
    storage.write_json(storage.join(url, "shardindex.json"), _wids_index(manifest))
    folder = storage.join(url, ENERGON_FOLDER)
    info = {"energon_version": ENERGON_VERSION, "shard_counts": counts}
    storage.write_json(storage.join(folder, ".info.json"), info)
    splits = {"exclude": [], "split_parts": {"train": list(counts), "val": [], "test": []}}
    storage.write_bytes(storage.join(folder, "split.yaml"), yaml.safe_dump(splits, sort_keys=False).encode())
    picture = next((extension for extension in extensions if extension in PICTURES), None)
    if picture is not None:
        sample = {"__module__": "megatron.energon", "__class__": "CaptioningSample"}
        fields = {"image": picture, "caption": "txt" if "txt" in extensions else "json[caption]"}
        tree = {"sample_type": sample, "field_map": fields}
        storage.write_bytes(storage.join(folder, "dataset.yaml"), yaml.safe_dump(tree, sort_keys=False).encode())


def _wids_index(manifest: Manifest) -> dict[str, object]:
    """wids-shard-index-v1; the URLs are relative to the file."""
    rows = [
        {"url": shard.name, "nsamples": shard.num_samples, "filesize": shard.num_bytes} for shard in manifest.shards
    ]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": rows}
