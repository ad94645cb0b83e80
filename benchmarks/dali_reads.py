"""Shards through DALI's own reader, on the CPU: every member beside the one that tarfile finds, every picture decoded.

DALI and what it needs weigh a gigabyte, and no part of the project needs it, so it wants an environment of its own:

    python3 -m venv dali && dali/bin/pip install nvidia-dali-cuda120
    dali/bin/python benchmarks/dali_reads.py SHARDS
"""

import json
import sys
import tarfile
from importlib import import_module
from pathlib import Path

import numpy as np

dali = import_module("nvidia.dali")  # not among the project's requirements, and so not imported by its name


@dali.pipeline_def(batch_size=1, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
def samples(tars: list[str], extension: str) -> tuple:
    """Pixels, and the members as they are stored; the indexes are those that lie beside the tars."""
    indexes = [tar.removesuffix(".tar") + ".idx" for tar in tars]
    fn = import_module("nvidia.dali.fn")
    members = fn.readers.webdataset(paths=tars, index_paths=indexes, ext=[extension, "txt", "json"], name="tars")
    return fn.decoders.image(members[0], device="cpu"), *members


def main() -> None:
    """Compare, and say how many."""
    tars = sorted(map(str, Path(sys.argv[1]).glob("*.tar")))
    truth = {}
    for tar in tars:
        with tarfile.open(tar) as file:
            truth |= {member.name: file.extractfile(member).read() for member in file}
    extension = next(name.partition(".")[2] for name in truth if not name.endswith((".json", ".txt")))
    reader = samples(tars, extension)
    reader.build()
    count = reader.reader_meta("tars")["epoch_size"]
    assert 3 * count == len(truth), (count, len(truth))
    for _ in range(count):
        pixels, picture, text, facts = (np.array(part.at(0)) for part in reader.run())
        row = json.loads(facts.tobytes())
        found = {extension: picture, "txt": text, "json": facts}
        assert {end: truth.pop(f"{row['key']}.{end}") for end in found} == {e: d.tobytes() for e, d in found.items()}
        assert pixels.shape == (row["height"], row["width"], 3), row["key"]
    print(f"DALI {dali.__version__}: {count} samples of {len(tars)} shards, every member as stored")


if __name__ == "__main__":
    main()
