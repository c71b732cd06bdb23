"""Sounds: headers, bodies, rates, channels, truncations, and files that are no sound at all."""

import io
import os
import random
import struct
from pathlib import Path

import numpy as np
import soundfile

from ..cases import Case
from ..materials import EXTREMES, NOT_THE_FILE, SAMPLING_RATE, damaged, encoded, write_good_sound

ENCODINGS = {
    "WAV": ("PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"),
    "FLAC": ("PCM_16", "PCM_24"),
    "OGG": ("VORBIS", "OPUS"),
    "MP3": ("MPEG_LAYER_III",),
    "AIFF": ("PCM_16", "FLOAT"),
    "AU": ("PCM_16", "ULAW"),
    "CAF": ("PCM_16", "ALAC_16"),
    "W64": ("PCM_16",),
    "RF64": ("PCM_16",),
    "NIST": ("PCM_16",),
    "VOC": ("PCM_16",),
    "PAF": ("PCM_16",),
    "IRCAM": ("PCM_16",),
}
RATES = (1, 2, 7, 100, 997, 7919, 8000, 11025, 15999, 16001, 22050, 44100, 48000, 96000, 192_000, 384_001, 2**31 - 1)
NAMES = (
    *("gone.wav", "x" * 300 + ".wav", "x" * 5000, "a'b\"c.wav", "grün.wav", "🐕.wav", "tab\t.wav", "esc\x1b[31m.wav"),
    *("good.wav/inside.wav", "~", "~root/x.wav", "http:/example.org/x.wav", "%s{0}$HOME.wav", " .wav", "\udcff.wav"),
)
FORMAT_TAGS = (0, 1, 2, 3, 6, 7, 17, 49, 85, 0xFFFE, 0xFFFF)
HEADER = 100  # bytes
OGG_POLYNOMIAL = 0x04C11DB7


def hear(rng: random.Random, folder: Path, name: str) -> Case:
    """One of the commands that open a sound."""
    write_good_sound(folder)
    (folder / "captions.txt").write_text("a dog barks\nrain falls\n")
    windows = rng.choice([[], [], ["--window-seconds", "2", "--hop-seconds", "1"]])
    way = rng.choice(["pair", "pair", "table", "rank", "matrix"])
    if way == "pair":
        return Case(["score", "--audio", name, "--text", "a dog", "--json", *windows], (name,))
    if way == "rank":
        return Case(["rank", name, "good.wav", "--text", "a dog"], (name,))
    if way == "matrix":
        return Case(["matrix", "good.wav", name, "--texts", "captions.txt"], (name,))
    (folder / "pairs.csv").write_text(f"audio,text\ngood.wav,a dog\n{name},a dog\n")
    strict = rng.choice([[], ["--strict"]])
    return Case(["score", "pairs.csv", "-o", "out.csv", *windows, *strict], (name,), ("out.csv",))


def hear_bytes(rng: random.Random, folder: Path, content: bytes, suffix: str = ".wav") -> Case:
    """The case of a file with this content."""
    name = f"sound{suffix}"
    (folder / name).write_bytes(content)
    return hear(rng, folder, name)


def any_sound(rng: random.Random) -> tuple[bytes, str]:
    """A sound in some format, and its suffix."""
    format = rng.choice(list(ENCODINGS))
    subtype = rng.choice(ENCODINGS[format])
    return encoded(format, subtype, frames=rng.choice([480, 4800])), f".{format.lower()}"


def wav(rng: random.Random, **fields: int) -> bytes:
    """A WAV file of 16-bit samples with these values in its header: `tag`, `channels`, `rate` and so on."""
    body = rng.randbytes(rng.choice([0, 1, 32, 3200]))
    channels, rate, bits = fields.get("channels", 1), fields.get("rate", SAMPLING_RATE), fields.get("bits", 16)
    align = fields.get("align", channels * bits // 8)
    numbers = (fields.get("tag", 1), channels, rate, fields.get("byte_rate", rate * align), align, bits)
    chunk = b"".join(
        (number % 2 ** (8 * width)).to_bytes(width, "little")
        for number, width in zip(numbers, (2, 2, 4, 4, 2, 2), strict=True)
    )
    size, riff = fields.get("size", len(body)) % 2**32, fields.get("riff", 36 + len(body)) % 2**32
    data = b"data" + struct.pack("<I", size) + body
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + struct.pack("<I", len(chunk)) + chunk + data


def wav_header(rng: random.Random, folder: Path) -> Case:
    """A WAV file with one to three extreme fields."""
    names = rng.sample(["tag", "channels", "rate", "byte_rate", "align", "bits", "size", "riff"], rng.randint(1, 3))
    fields = {name: rng.choice(FORMAT_TAGS if name == "tag" else EXTREMES) for name in names}
    return hear_bytes(rng, folder, wav(rng, **fields))


def broken_header(rng: random.Random, folder: Path) -> Case:
    """A file of some format with other bytes in its header."""
    content, suffix = any_sound(rng)
    return hear_bytes(rng, folder, damaged(rng, content, HEADER), suffix)


def broken_body(rng: random.Random, folder: Path) -> Case:
    """A file of some format that is cut, doubled, or otherwise damaged somewhere."""
    content, suffix = any_sound(rng)
    return hear_bytes(rng, folder, damaged(rng, content), suffix)


def odd_rate(rng: random.Random, folder: Path) -> Case:
    """A sound file, without fault, of a rate and length that nobody expects."""
    rate, channels = rng.choice(RATES), rng.choice([1, 2, 7, 300])
    content = encoded("WAV", "PCM_16", rate, channels, rng.choice([1, 2, 399, 400, 16000]))
    return hear_bytes(rng, folder, content)


def odd_samples(rng: random.Random, folder: Path) -> Case:
    """Floating point samples that are NaN, infinite, huge, tiny or all the same."""
    values = [np.nan, np.inf, -np.inf, 1e30, 3e38, 1e-45, 10.0, 10.1, 0.0, 1.0, -1.0]
    samples = np.full((rng.choice([1, 400, 8000]), rng.choice([1, 2])), rng.choice(values), dtype=np.float32)
    samples[rng.randrange(len(samples))] = rng.choice(values)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format=rng.choice(["WAV", "AIFF", "AU"]), subtype="FLOAT")
    return hear_bytes(rng, folder, buffer.getvalue())


def flac_promises(rng: random.Random, folder: Path) -> Case:
    """A FLAC file whose STREAMINFO (RFC 9639, section 8.2) claims another rate, depth, length or number of channels."""
    content = bytearray(encoded("FLAC", "PCM_16"))
    rate, channels = rng.choice([SAMPLING_RATE, 0, 1, 655_350, 2**20 - 1]), rng.choice([1, 1, 2, 8])
    bits, total = rng.choice([16, 4, 24, 32]), rng.choice([4800, 0, 1, 2**20, 2**32, 2**36 - 1])
    packed = rate << 44 | (channels - 1) << 41 | (bits - 1) << 36 | total
    content[18:26] = packed.to_bytes(8, "big")
    return hear_bytes(rng, folder, bytes(content), ".flac")


def ogg_promises(rng: random.Random, folder: Path) -> Case:
    """An Ogg file with sound checksums that claims another rate, length or number of channels."""
    subtype = rng.choice(["VORBIS", "OPUS"])
    content = bytearray(encoded("OGG", subtype))
    last = content.rfind(b"OggS")
    if rng.random() < 0.5:
        content[last + 6 : last + 14] = (rng.choice(EXTREMES) % 2**64).to_bytes(8, "little")
        _seal(content, last, len(content))
    else:
        channels, rate = (39, 40) if subtype == "VORBIS" else (37, 40)
        content[channels] = rng.choice([0, 1, 2, 255])
        content[rate : rate + 4] = (rng.choice(EXTREMES) % 2**32).to_bytes(4, "little")
        _seal(content, 0, content.find(b"OggS", 1))
    return hear_bytes(rng, folder, bytes(content), ".ogg")


def _seal(content: bytearray, start: int, end: int) -> None:
    """Put the checksum of a page (RFC 3533, section 6) into it."""
    content[start + 22 : start + 26] = bytes(4)
    checksum = 0
    for byte in content[start:end]:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (OGG_POLYNOMIAL if checksum & 1 << 31 else 0)) % 2**32
    content[start + 22 : start + 26] = checksum.to_bytes(4, "little")


def no_sound(rng: random.Random, folder: Path) -> Case:
    """A page, a pointer, text or noise under the name of a sound, perhaps behind the first bytes of one."""
    head = rng.choice([b"", b"RIFF", b"fLaC", b"OggS\x00\x02", b"ID3\x03", b"\xff\xfb\x90", b"FORM", b".snd", b"caff"])
    content = rng.choice([*NOT_THE_FILE, b"wav_file_name,text\n", rng.randbytes(rng.choice([1, 4, 44, 5000]))])
    return hear_bytes(rng, folder, head + content, rng.choice([".wav", ".flac", ".ogg", ".mp3", ".txt", ""]))


def special_file(rng: random.Random, folder: Path) -> Case:
    """A folder, a pipe without a writer, a device, or a link to nowhere, to itself or to one of these."""
    name, kind = "sound.wav", rng.choice(["folder", "pipe", "loop", "nowhere", "/dev/zero", "/dev/null", "/dev/full"])
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        os.symlink({"loop": name, "nowhere": "gone.wav"}.get(kind, kind), folder / name)
    return hear(rng, folder, name)


def odd_name(rng: random.Random, folder: Path) -> Case:
    """A name that is not there, or that is there and hard to print."""
    name = rng.choice(NAMES)
    if "/" not in name and name != "gone.wav" and len(name) < 200 and rng.random() < 0.7:
        write_good_sound(folder, name)
    if rng.random() < 0.5:
        return Case(["score", "--audio", name, "--text", "a dog"], (name, "--audio"))
    write_good_sound(folder)
    return Case(["rank", name, "good.wav", "--text", "a dog"], (name,))


TRICKS = (
    *(wav_header, broken_header, broken_body, odd_rate, odd_samples),
    *(flac_promises, ogg_promises, no_sound, special_file, odd_name),
)
