"""HTML reports: ids, captions, groups, models and sounds that would be markup, if they were let."""

import json
import random
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from ..cases import Case
from ..materials import NOT_THE_FILE, SUFFIXES, damaged, encoded, table_bytes, text

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "table", "tr", "th", "td"),
    *("figure", "img", "figcaption", "audio"),
}
ATTRIBUTES = {"lang", "charset", "name", "content", "class", "width", "src", "alt", "controls", "preload"}


class Tags(HTMLParser):
    """Notes the tags and attributes that a report has no use for."""

    def __init__(self):
        super().__init__()
        self.strangers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at a tag."""
        self.strangers += [tag] * (tag not in TAGS)
        for name, value in attrs:
            is_link = name == "src" and not (value or "").startswith("data:")
            self.strangers += [f"{tag} {name}"] * (name not in ATTRIBUTES or is_link)


def is_clean(folder: Path, stdout: str) -> Iterator[str]:
    """The page has no markup but its own."""
    page = Tags()
    page.feed((folder / "out/report.html").read_text(encoding="utf-8"))
    if page.strangers:
        yield f"the report has {', '.join(sorted(set(page.strangers))[:5])} out of the data"


def report(rng: random.Random, folder: Path) -> Case:
    """A report of tables in which every text may be hostile."""
    number = rng.choice([2, 3, 8])
    texts = [text(rng) for _ in range(3)]
    suffix = rng.choice(SUFFIXES[:3])
    audio = [f"{row}.wav" for row in range(number)]
    columns = ["audio", "text", "model_id", rng.choice(["source", "$x$", "<b>", "{{ x }}", "a\nb"]), "score"]
    rows = [[audio[row], *(rng.choice(texts) for _ in range(3)), rng.uniform(0, 10)] for row in range(number)]
    (folder / f"scores{suffix}").write_bytes(table_bytes(columns, rows, suffix))
    reference = [[name, rng.choice(texts), rng.uniform(0, 10)] for name in audio]
    (folder / "listeners.csv").write_bytes(table_bytes(["audio", "text", "average_score"], reference, ".csv"))
    sidecar = {"signature": text(rng), "model": text(rng), "revision": text(rng)}
    (folder / f"scores{suffix}.json").write_text(json.dumps(sidecar))
    sound = encoded("WAV", "PCM_16")
    (folder / audio[0]).write_bytes(rng.choice([sound, damaged(rng, sound), rng.choice(NOT_THE_FILE)]))
    group = rng.choice([[], ["--group", columns[3]], ["--group", "text"]])
    options = [
        "--key",
        "audio",
        "--resamples",
        "20",
        "-o",
        "out",
        *group,
        *rng.choice([[], ["--worst", "0"], ["--audio-dir", "."]]),
    ]
    names = (f"scores{suffix}", "listeners.csv", columns[3])
    return Case(["evaluate", f"scores{suffix}", "listeners.csv", *options], names, ("out",), check=is_clean)


TRICKS = (report,)
