"""The options for scoring a table."""

from dataclasses import dataclass
from typing import Any

from .groups import CLIPS_PER_GROUP, WINDOWED_CLIPS_PER_GROUP


@dataclass(frozen=True)
class TableOptions:
    """
    How to score a table.

    Fields:
        batch_size (`int`, *optional*): Windows, and pairs, in one pass of the model; by default what the device holds,
            halved when it turns out to hold less.
        workers (`int`): Processes that load and resample sounds; 0 means this process alone.
        window_seconds (`float`, *optional*), hop_seconds (`float`, *optional*): As for the pipeline's call.
        windows (`bool`): Add a column with the score of each window.
        signature (`bool`): Add a column that identifies the model and its settings.
        xacle (`bool`): Write only the challenge's two columns.
        prefix (`str`): Prefix of the names of the added columns.
        strict (`bool`): Stop at the first row that cannot be scored.
        restart (`bool`): Forget earlier runs, and replace what is at the output.
        verify (`bool`): Compare the contents of clips that were scored earlier even where size and times are the same.
    """

    batch_size: int | None = None
    workers: int = 0
    window_seconds: float | None = None
    hop_seconds: float | None = None
    windows: bool = False
    signature: bool = False
    xacle: bool = False
    prefix: str = ""
    strict: bool = False
    restart: bool = False
    verify: bool = False

    @property
    def call_arguments(self) -> dict[str, Any]:
        """Arguments for the pipeline's `preprocess`."""
        return {"window_seconds": self.window_seconds, "hop_seconds": self.hop_seconds}

    @property
    def clips_per_group(self) -> int:
        """Clips that are loaded and scored together."""
        return CLIPS_PER_GROUP if self.window_seconds is self.hop_seconds is None else WINDOWED_CLIPS_PER_GROUP

    @property
    def added(self) -> dict[str, str]:
        """Names of the added columns, by what they hold."""
        names = ["score", "status", "notes", *["windows"] * self.windows, *["signature"] * self.signature]
        return {name: self.prefix + name for name in names}
