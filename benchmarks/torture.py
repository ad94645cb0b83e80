"""The torture corpus through img2dataset, held against the results that our tests demand of ours.

`IMG2DATASET_PYTHON=... python -m benchmarks.torture` prints one line for each case and the sums; PNG without resizing,
so that nothing is lost on the way.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.likeness import psnr
from benchmarks.sharding import serving
from data_tools.pixels.header import BadImage
from data_tools.pixels.prepare import prepare
from pipeline.data.tar import parse_samples
from tests.data_tools.torture import Case, corpus


def main() -> None:
    """Both columns."""
    cases = list(corpus())
    with tempfile.TemporaryDirectory() as name:
        theirs = img2dataset(Path(name), cases)
    num_right = [0, 0]
    for case in cases:
        verdicts = verdict(case, ours(case)), verdict(case, theirs.get(case.name))
        num_right = [count + (text == "as wanted") for count, text in zip(num_right, verdicts, strict=True)]
        print(f"{case.name:<28} {verdicts[0]:<12} {verdicts[1]}")
    print(f"as wanted, of {len(cases)}: ours {num_right[0]}, img2dataset {num_right[1]}")


def ours(case: Case) -> np.ndarray | None:
    """uint8 [H, W, 3], or None for refused."""
    try:
        return decoded(prepare(case.data, "none", None, "png").data)
    except BadImage:
        return None


def img2dataset(folder: Path, cases: list[Case]) -> dict[str, np.ndarray]:
    """Name -> pixels of what it stored."""
    (folder / "files").mkdir()
    for case in cases:
        (folder / "files" / case.name).write_bytes(case.data)
    with serving(folder / "files") as url:
        rows = [f"{url}/{case.name},{case.name}" for case in cases]
        (folder / "urls.csv").write_text("\n".join(["url,caption", *rows]) + "\n")
        script = folder / "run.py"
        script.write_text(
            "from img2dataset import download\n"
            "if __name__ == '__main__':\n"
            f"    download(url_list={str(folder / 'urls.csv')!r}, input_format='csv', url_col='url',"
            f" caption_col='caption', output_format='webdataset', output_folder={str(folder / 'out')!r},"
            " resize_mode='no', encode_format='png', encode_quality=6, processes_count=1, thread_count=4)\n"
        )
        environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
        command = [os.environ["IMG2DATASET_PYTHON"], str(script)]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    samples = parse_samples((folder / "out/00000.tar").read_bytes())
    return {sample.members["txt"].decode(): decoded(sample.members["png"]) for sample in samples}


def decoded(data: bytes) -> np.ndarray:
    """A PNG as training sees it: three channels of 8 bits."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def verdict(case: Case, found: np.ndarray | None) -> str:
    """One or two words."""
    if case.wanted is None:
        return "as wanted" if found is None else "stored"
    if found is None:
        return "refused"
    if found.shape != case.wanted.shape:
        return f"{found.shape[1]} x {found.shape[0]}"
    likeness = psnr(found, case.wanted) if not np.array_equal(found, case.wanted) else float("inf")
    return "as wanted" if likeness >= case.psnr else f"{likeness:.0f} dB"


if __name__ == "__main__":
    main()
