"""Which caption of a sample counts, where it has several: a draw keyed on the sample and the epoch.

Called by the decoders of pictures and of latents.
"""

import json
from collections.abc import Iterator, Sequence

from pipeline.data.tar import TarSample, caption_of, metadata_of
from pipeline.randomness import Draws, Purpose


class CaptionChoice:
    """Chooses a caption.

    Args:
        fields: of the `json` member, each a text or a list of texts; none: the caption of the shard.
        draws: of training; None takes the first caption always.
    """

    def __init__(self, fields: Sequence[str], draws: Draws | None) -> None:
        self._fields, self._draws = fields, draws

    def __call__(self, sample: TarSample, epoch: int, sample_id: int) -> str:
        """The caption of a sample in an epoch; that of the shard where the fields hold none."""
        captions = list(_texts(sample, self._fields)) if self._fields else []
        if len(captions) < 2 or self._draws is None:
            return captions[0] if captions else caption_of(sample)
        uniform = self._draws.uniform(Purpose.CAPTION_CHOICE, [epoch], [sample_id])[0, 0]
        return captions[int(uniform * len(captions))]


def _texts(sample: TarSample, fields: Sequence[str]) -> Iterator[str]:
    """All captions in the fields, in their order, but empty ones."""
    try:
        tree = json.loads(metadata_of(sample))
    except ValueError:
        return
    for field in fields:
        value = tree.get(field) if isinstance(tree, dict) else None
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield text.strip()
