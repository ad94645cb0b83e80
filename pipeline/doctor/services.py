"""What a run talks to: the tracking server, its data. Called by `examine`."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import UserError
from pipeline.doctor.finding import Finding, Status, first_line
from pipeline.redact import redact_text

if TYPE_CHECKING:  # torch comes with it, and a torch that does not import is one of the findings
    from pipeline.data.dataset import DataConfig


def check_tracking(uri: str | None) -> Finding:
    """Whether the MLflow server answers. A run goes on without it, since its journal is shipped later."""
    from pipeline.tracking.server import ServerError, answering, connect, tracking_uri

    address = tracking_uri(uri)
    path = Path(address.removeprefix("sqlite:///"))
    if address.startswith("sqlite:///") and not path.exists():
        return Finding("tracking", Status.OK, f"{address}, made by the first run")
    try:
        client = connect(uri)
        with answering(uri):
            client.search_experiments(max_results=1)
    except ServerError as error:
        remedy = "start the server, or set MLFLOW_TRACKING_URI; a run works without, and its journal is shipped later"
        return Finding("tracking", Status.WARNING, first_line(error), remedy)
    except UserError as error:
        return Finding("tracking", Status.FAILURE, first_line(error), "set MLFLOW_TRACKING_URI to an address it knows")
    return Finding("tracking", Status.OK, f"{redact_text(address)} answers")


def check_data(url: str, config: "DataConfig") -> Finding:
    """The manifest, and the first sample that can be read through the whole chain of reading and decoding."""
    from pipeline.data.loader import OrderedReader

    name = f"data {url}"
    try:
        with OrderedReader(url, config, batch_size=1) as reader:
            count = reader.manifest.num_samples
            first = next((batch.keys[0] for batch in reader.batches() if batch.keys), None)  # bad ones are left out
    except (UserError, OSError) as error:
        found, _, remedy = first_line(error).partition("; ")  # a UserError names its own
        return Finding(name, Status.FAILURE, found, remedy or f"tessera-data validate {url}")
    if first is None:
        return Finding(name, Status.FAILURE, f"none of {count} samples decodes", f"tessera-data validate {url}")
    return Finding(name, Status.OK, f"{count} samples; {first} decodes")


REMEDIES = {
    "network": "more data.num_fetch_threads, longer data.block_samples, or shards nearer to the machine",
    "decode": "more data.num_decode_threads up to the cores, shards of the training's size, or latents made beforehand",
    "copying": "smaller pictures or latents made beforehand; nothing else copies less",
}


def check_speed(config: "DataConfig", batch_size: int, world_size: int, seconds: float) -> Finding:
    """How many samples a second one rank can be fed here, and which stage is the slowest."""
    from pipeline.data.probe import measure

    try:
        speed = measure(config, batch_size, world_size, seconds)
    except (UserError, OSError) as error:
        return Finding("data speed", Status.FAILURE, first_line(error), "see the finding before this one")
    alone = ", ".join(f"{stage} {getattr(speed, stage):,.0f}" for stage in REMEDIES)
    found = (
        f"feeds {speed.fed:,.0f} samples/s, bound by {speed.bound} (each alone: {alone});"
        f" bytes fetched over bytes used {speed.fetched_over_used:.2f}"
    )
    return Finding("data speed", Status.OK, found, f"to go faster: {REMEDIES[speed.bound]}")
