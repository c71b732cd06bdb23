"""
The sounds of the synthetic corpus: building blocks, and one function for each kind of event.

A kind's function returns one occurrence, or one stretch of a continuous sound: a waveform of shape `(samples,)` of the
requested length. `pitch` and `speed` are factors around 1; not every kind uses them. All random choices come from the
`numpy.random.Generator` that a function is given.
"""

from functools import lru_cache

import numpy as np
from scipy import signal

SAMPLING_RATE = 16000
# Harmonics above this would alias or vanish in the loader's band.
HIGHEST_HZ = 7600.0


# ---------------------------------------------------------------------------------------------------------------------
# Building blocks. Waveforms are float64 of shape (samples,) at SAMPLING_RATE, of any scale: levels are set afterwards.


def num_samples(seconds: float) -> int:
    """Returns the number of samples in this many seconds."""
    return round(seconds * SAMPLING_RATE)


def time_axis(seconds: float) -> np.ndarray:
    """Returns the time of each sample in seconds, shape `(samples,)`."""
    return np.arange(num_samples(seconds)) / SAMPLING_RATE


@lru_cache(maxsize=256)
def _band_filter(low: float, high: float) -> np.ndarray:
    edges = [low, high] if low > 0 else high
    return signal.butter(2, edges, "bandpass" if low > 0 else "lowpass", fs=SAMPLING_RATE, output="sos")


def band_noise(rng: np.random.Generator, samples: int, low: float, high: float) -> np.ndarray:
    """Returns white noise of shape `(samples,)` between two frequencies in Hz, of unit power; `low` may be 0."""
    noise = signal.sosfilt(_band_filter(low, high), rng.standard_normal(samples))
    return noise / (np.sqrt(np.mean(noise**2)) + 1e-12)


def wander(rng: np.random.Generator, samples: int, rate: float) -> np.ndarray:
    """Returns a curve of shape `(samples,)` in [0, 1] with about `rate` random turns a second."""
    points = rng.random(max(2, int(samples / SAMPLING_RATE * rate) + 2))
    positions = np.linspace(0, len(points) - 1, samples)
    index = np.minimum(positions.astype(int), len(points) - 2)
    blend = 0.5 - 0.5 * np.cos(np.pi * (positions - index))
    return points[index] * (1 - blend) + points[index + 1] * blend


def phase_of(frequency: np.ndarray) -> np.ndarray:
    """Returns the phase, in cycles, of an oscillator with a frequency in Hz for each sample, shape `(samples,)`."""
    return np.cumsum(frequency) / SAMPLING_RATE


def harmonics(frequency: np.ndarray, count: int, slope: float) -> np.ndarray:
    """
    Sum of sines at the multiples of a frequency in Hz for each sample, shape `(samples,)`; the k-th has the amplitude
    `k ** -slope`, and those above `HIGHEST_HZ` are left out.
    """
    phase = 2 * np.pi * phase_of(frequency)
    count = max(1, min(count, int(HIGHEST_HZ / frequency.max())))
    return sum(np.sin(k * phase) / k**slope for k in range(1, count + 1))


def sawtooth(frequency: np.ndarray) -> np.ndarray:
    """Sawtooth in [-1, 1] with a frequency in Hz for each sample, shape `(samples,)`."""
    return 2 * (phase_of(frequency) % 1.0) - 1


def swept_noise(rng: np.random.Generator, frequency: np.ndarray, bandwidth: float) -> np.ndarray:
    """Noise in a band of the given width around a centre in Hz for each sample, shape `(samples,)`."""
    carrier = 2 * np.pi * phase_of(frequency)
    in_phase, quadrature = (band_noise(rng, len(frequency), 0, bandwidth / 2) for _ in range(2))
    return in_phase * np.cos(carrier) - quadrature * np.sin(carrier)


def resonate(source: np.ndarray, *peaks: tuple[float, float, float]) -> np.ndarray:
    """The source of shape `(samples,)` through parallel resonances, each a frequency, bandwidth (Hz) and gain."""
    result = np.zeros_like(source)
    for frequency, bandwidth, gain in peaks:
        frequency = min(frequency, HIGHEST_HZ)
        result += gain * signal.lfilter(*signal.iirpeak(frequency, frequency / bandwidth, fs=SAMPLING_RATE), source)
    return result


def decay(seconds: float, time_constant: float, attack: float = 0.001) -> np.ndarray:
    """Envelope of shape `(samples,)`: a rise within `attack` seconds, then an exponential fall."""
    time = time_axis(seconds)
    return np.minimum(time / attack, 1.0) * np.exp(-time / time_constant)


def swell(seconds: float, rise: float, fall: float) -> np.ndarray:
    """Envelope of shape `(samples,)` that is 1 but for smooth ramps at both ends, in seconds."""
    time = time_axis(seconds)
    ramp = np.minimum(np.minimum(time / rise, (seconds - time) / fall), 1.0)
    return 0.5 - 0.5 * np.cos(np.pi * ramp)


def burst(rng: np.random.Generator, seconds: float, low: float, high: float, time_constant: float) -> np.ndarray:
    """A noise burst between two frequencies in Hz that dies away, shape `(samples,)`."""
    return band_noise(rng, num_samples(seconds), low, high) * decay(seconds, time_constant)


def strike(seconds: float, partials: list[tuple[float, float, float]]) -> np.ndarray:
    """A struck body of shape `(samples,)`: partials as frequency (Hz), amplitude and decay time (seconds)."""
    time = time_axis(seconds)
    sounding = [partial for partial in partials if partial[0] < HIGHEST_HZ]
    body = sum(a * np.sin(2 * np.pi * f * time) * np.exp(-time / tau) for f, a, tau in sounding)
    return body * np.minimum(time / 0.001, 1.0)


def chirp(seconds: float, start: float, end: float) -> np.ndarray:
    """A sine of shape `(samples,)` that glides between two frequencies in Hz."""
    return np.sin(2 * np.pi * phase_of(np.geomspace(start, end, num_samples(seconds))))


def scatter(samples: int, pieces: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Adds up pieces at their times in seconds, shape `(samples,)`; what reaches beyond the end is cut."""
    result = np.zeros(samples)
    for start, piece in pieces:
        begin = num_samples(start)
        end = min(begin + len(piece), samples)
        result[begin:end] += piece[: max(0, end - begin)]
    return result


def regular_times(rng: np.random.Generator, seconds: float, interval: float, jitter: float = 0.0) -> np.ndarray:
    """Times in seconds, shape `(times,)`, about `interval` apart; `jitter` is their deviation in intervals."""
    times = np.arange(0.02, max(seconds - 0.05, 0.03), interval)
    return np.maximum(times + jitter * interval * rng.standard_normal(len(times)), 0.0)


def random_times(rng: np.random.Generator, seconds: float, rate: float) -> np.ndarray:
    """Independent times in seconds, shape `(times,)`, `rate` of them a second."""
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))


# ---------------------------------------------------------------------------------------------------------------------
# The kinds of event.


def rain(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Steady bright hiss with a dense patter of drops; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    hiss = band_noise(rng, samples, 2200, 7500) * (0.85 + 0.15 * wander(rng, samples, 1))
    drops = (rng.random(samples) < 250 / SAMPLING_RATE) * rng.exponential(1.0, samples)
    return hiss + 4 * resonate(drops, (3300, 900, 1.0), (5200, 1500, 1.0))


def thunder(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """A crack and a long low rumble; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    rumble = band_noise(rng, samples, 25, 130) * decay(seconds, 0.55, 0.06) * (0.5 + wander(rng, samples, 7))
    return rumble + 0.8 * burst(rng, seconds, 100, 1500, 0.12)


def wind(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """A narrow band of noise that wanders and howls; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    centre = pitch * (330 + 300 * wander(rng, samples, 0.7))
    return swept_noise(rng, centre, 110) * (0.25 + wander(rng, samples, 0.8))


def stream(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Many small rising bubbles; waveform of shape `(samples,)`."""
    pieces = []
    for time in random_times(rng, seconds, 55):
        length, start = rng.uniform(0.015, 0.05), rng.uniform(350, 1500)
        bubble = chirp(length, start, start * rng.uniform(1.1, 1.6)) * np.hanning(num_samples(length))
        pieces.append((time, rng.exponential(1.0) * bubble))
    samples = num_samples(seconds)
    return scatter(samples, pieces) + 0.06 * band_noise(rng, samples, 300, 2000)


def drops(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """The plink of one drop; waveform of shape `(samples,)`."""
    plink = chirp(seconds, 950 * pitch, 1500 * pitch * rng.uniform(0.95, 1.05)) * decay(seconds, 0.035, 0.004)
    return plink + 0.15 * burst(rng, seconds, 3000, 7000, 0.004)


def waves(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Surf that comes and goes; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    phase = rng.random() + time_axis(seconds) * speed / 3.0
    rise = (0.5 - 0.5 * np.cos(2 * np.pi * (phase % 1.0) ** 0.7)) ** 2
    return band_noise(rng, samples, 80, 900) * (0.1 + rise) + 0.7 * band_noise(rng, samples, 1000, 6000) * rise**3


def fire(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Sparse sharp crackles over a low flutter; waveform of shape `(samples,)`."""
    pieces = []
    for time in random_times(rng, seconds, 14):
        crackle = burst(rng, 0.02, rng.uniform(900, 2500), 7500, rng.uniform(0.0008, 0.004))
        pieces.append((time, (0.3 + rng.exponential(1.0)) * crackle))
    samples = num_samples(seconds)
    return scatter(samples, pieces) + 0.12 * band_noise(rng, samples, 60, 350) * (0.4 + wander(rng, samples, 9))


def siren(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """A tone that glides up and down; waveform of shape `(samples,)`."""
    phase = rng.random() + time_axis(seconds) * speed / 2.2
    return harmonics(850 * pitch * 2 ** (0.55 * np.sin(2 * np.pi * phase)), 4, 1.6)


def telephone(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One ring, a fast trill of two bells; waveform of shape `(samples,)`."""
    time = time_axis(seconds)
    stroke = (time * 22) % 1.0
    first = np.floor(time * 22) % 2 == 0
    tones = [
        np.sin(2 * np.pi * f * pitch * time) + 0.5 * np.sin(2 * np.pi * 2.7 * f * pitch * time) for f in (960, 1230)
    ]
    return np.where(first, *tones) * np.exp(-1.5 * stroke) * swell(seconds, 0.01, 0.08)


def bell(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One toll with a church bell's inharmonic partials; waveform of shape `(samples,)`."""
    ratios = [(0.5, 0.6, 0.9), (1.0, 1.0, 0.7), (1.19, 0.7, 0.55), (1.5, 0.4, 0.4), (2.0, 0.8, 0.4), (2.74, 0.4, 0.2)]
    partials = [(ratio * 440 * pitch, amplitude, tau) for ratio, amplitude, tau in [*ratios, (4.1, 0.25, 0.1)]]
    return strike(seconds, partials) * swell(seconds, 0.002, 0.3)


def alarm(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Electronic beeps, evenly on and off; waveform of shape `(samples,)`."""
    gate = ((time_axis(seconds) * 2.6 * speed) % 1.0) < 0.5
    smooth = np.convolve(gate, np.hanning(80) / np.hanning(80).sum(), "same")
    return harmonics(np.full(len(gate), 2350 * pitch), 3, 0.8) * smooth


def horn(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One honk of two reedy tones a third apart; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    chord = sum(harmonics(np.full(samples, f * pitch), 10, 0.7) for f in (330, 415))
    return chord * swell(seconds, 0.02, 0.04)


def whistle(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One blast of a pea whistle; waveform of shape `(samples,)`."""
    time = time_axis(seconds)
    frequency = 2500 * pitch * (1 + 0.045 * np.sin(2 * np.pi * 34 * time + rng.uniform(0, 6)))
    breath = swept_noise(rng, frequency, 500)
    return (
        (harmonics(frequency, 2, 2.5) + 0.25 * breath)
        * (0.75 + 0.25 * np.sin(70 * np.pi * time))
        * swell(seconds, 0.03, 0.05)
    )


def clock(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Regular ticks and tocks; waveform of shape `(samples,)`."""
    pieces = []
    for index, time in enumerate(regular_times(rng, seconds, 0.5 / speed)):
        body = 2600 if index % 2 else 1900
        tick = strike(0.05, [(body, 1.0, 0.006), (2.3 * body, 0.7, 0.004)]) + 0.3 * burst(rng, 0.05, 3000, 7000, 0.002)
        pieces.append((time, tick))
    return scatter(num_samples(seconds), pieces)


def engine(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Low uneven combustion pulses; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    frequency = 36 * pitch * (0.97 + 0.06 * wander(rng, samples, 3))
    pulses = (1 - phase_of(frequency) % 1.0) ** 6 * (0.8 + 0.4 * wander(rng, samples, 40))
    source = pulses * (1 + 0.4 * rng.standard_normal(samples))
    return resonate(source - source.mean(), (95 * pitch, 60, 1.0), (240 * pitch, 110, 0.8), (620 * pitch, 300, 0.4))


def helicopter(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Broad thuds of the rotor at an even fast beat; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    beat = (time_axis(seconds) * 11 * speed) % 1.0
    chop = np.exp(-6 * beat) * np.minimum(beat / 0.05, 1.0)
    thud = band_noise(rng, samples, 60, 500) + 0.35 * band_noise(rng, samples, 800, 3500)
    return thud * (0.06 + chop)


def drill(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """A harsh buzz rich in high harmonics; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    spin_up = 1 - 0.5 * np.exp(-time_axis(seconds) / 0.08)
    buzz = sawtooth(185 * pitch * spin_up * (0.98 + 0.04 * wander(rng, samples, 6)))
    rasp = band_noise(rng, samples, 2500, 6500) * (0.3 + 0.7 * (buzz > 0))
    return resonate(buzz, (1500, 700, 1.0), (3100, 900, 1.4)) + 0.15 * buzz + 0.25 * rasp


def train(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Pairs of wheel knocks over a rumble; waveform of shape `(samples,)`."""
    pieces = []
    for time in regular_times(rng, seconds, 0.95 / speed):
        pieces += [(time + shift, burst(rng, 0.12, 180, 1300, 0.022)) for shift in (0.0, 0.16 / speed)]
    samples = num_samples(seconds)
    return 2.5 * scatter(samples, pieces) + 0.5 * band_noise(rng, samples, 35, 220)


def vacuum(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """A constant motor whine in rushing air; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    spin_up = 1 - 0.4 * np.exp(-time_axis(seconds) / 0.25)
    whine = harmonics(430 * pitch * spin_up, 5, 0.6)
    return whine + 0.9 * band_noise(rng, samples, 500, 2200) + 0.2 * band_noise(rng, samples, 2000, 6000)


def saw(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Strokes of rough noise, up in pitch and down again; waveform of shape `(samples,)`."""
    stroke = (time_axis(seconds) * 1.5 * speed) % 1.0
    forward = stroke < 0.5
    position = np.where(forward, stroke / 0.5, (stroke - 0.5) / 0.5)
    centre = np.where(forward, 1300 + 1800 * position, 2500 - 1300 * position)
    teeth = 0.35 + 0.65 * (np.sin(2 * np.pi * 85 * time_axis(seconds)) > 0)
    return swept_noise(rng, centre, 1000) * np.sin(np.pi * position) * np.where(forward, 1.0, 0.5) * teeth


def bark(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One dog-like bark; waveform of shape `(samples,)`."""
    position = time_axis(seconds) / seconds
    voice = sawtooth(380 * pitch * (0.75 + 0.5 * np.sin(np.pi * position**0.6)) * rng.uniform(0.96, 1.04))
    source = voice + 0.4 * rng.standard_normal(len(voice))
    shaped = resonate(source, (720 * pitch**0.4, 220, 1.0), (1500 * pitch**0.4, 300, 0.8), (2700, 500, 0.3))
    return shaped * decay(seconds, 0.09, 0.015) * swell(seconds, 0.005, 0.05)


def meow(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One cat-like meow; waveform of shape `(samples,)`."""
    position = time_axis(seconds) / seconds
    source = sawtooth(560 * pitch * (0.8 + 0.45 * np.sin(np.pi * position**0.8)))
    closed, opened = resonate(source, (950, 300, 0.5), (2700, 400, 1.0)), resonate(source, (1150, 350, 1.2))
    opening = np.sin(np.pi * position) ** 2
    return (closed * (1 - opening) + opened * opening) * swell(seconds, 0.12, 0.3)


def birds(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Phrases of quick high chirps; waveform of shape `(samples,)`."""
    pieces, time = [], rng.uniform(0, 0.2)
    while time < seconds:
        length, start = rng.uniform(0.05, 0.1), pitch**0.5 * rng.uniform(3000, 4300)
        glide = rng.choice([0.75, 1.35, 1.5])
        for _ in range(rng.integers(2, 6)):
            note = chirp(length, start, min(start * glide, HIGHEST_HZ)) * np.hanning(num_samples(length))
            pieces.append((time, note))
            time += length + rng.uniform(0.02, 0.05)
        time += rng.uniform(0.15, 0.5)
    return scatter(num_samples(seconds), pieces)


def crickets(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Short trains of high pure pulses; waveform of shape `(samples,)`."""
    time = time_axis(seconds)
    group = ((time * 2.2 * speed) % 1.0) < 0.55
    pulse = np.maximum(np.sin(2 * np.pi * 30 * time), 0.0)
    return np.sin(2 * np.pi * 4900 * pitch**0.4 * time) * pulse * group


def frog(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One creaking croak; waveform of shape `(samples,)`."""
    creak = (1 - phase_of(np.geomspace(55, 38, num_samples(seconds))) % 1.0) ** 10
    source = creak * (1 + 0.2 * rng.standard_normal(len(creak)))
    return resonate(source - source.mean(), (560 * pitch, 90, 1.0), (1350 * pitch, 160, 1.2)) * swell(
        seconds, 0.15, 0.06
    )


def owl(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One soft hollow hoot; waveform of shape `(samples,)`."""
    position = time_axis(seconds) / seconds
    frequency = 400 * pitch * (1.03 - 0.1 * position + 0.01 * np.sin(2 * np.pi * 3 * position))
    return harmonics(frequency, 3, 3.0) * swell(seconds, 0.12, 0.2)


def cow(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One long low moo; waveform of shape `(samples,)`."""
    position = time_axis(seconds) / seconds
    source = sawtooth(140 * pitch * (0.8 + 0.35 * np.sin(np.pi * position**0.7)))
    mouth = resonate(source, (320, 90, 1.2), (780, 130, 0.9), (2000, 300, 0.25))
    return mouth * swell(seconds, 0.2, 0.35)


VOWELS = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
    (490, 1350, 1690),
)


def voiced(rng: np.random.Generator, frequency: np.ndarray, vowel: tuple[int, int, int], breath: float) -> np.ndarray:
    """A voice with a frequency in Hz for each sample, shape `(samples,)`, through the three formants of a vowel."""
    source = sawtooth(frequency) + breath * rng.standard_normal(len(frequency))
    first, second, third = vowel
    return resonate(source, (first, 90, 1.0), (second, 120, 0.7), (third, 180, 0.3))


def babble(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Speech-like syllables in phrases, without words; waveform of shape `(samples,)`."""
    pieces, time = [], 0.0
    while time < seconds:
        for _ in range(rng.integers(3, 8)):
            length = rng.uniform(0.14, 0.24) / speed
            glide = np.linspace(rng.uniform(0.9, 1.2), rng.uniform(0.85, 1.1), num_samples(length))
            syllable = voiced(rng, 135 * pitch * glide, VOWELS[rng.integers(len(VOWELS))], 0.05)
            pieces.append((time, syllable * swell(length, 0.03, 0.05)))
            if rng.random() < 0.4:
                pieces.append((time, 0.25 * burst(rng, 0.06, 2500, 7000, 0.02)))
            time += length
        time += rng.uniform(0.15, 0.4) / speed
    return scatter(num_samples(seconds), pieces)


def applause(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Many hands clapping; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    result = np.zeros(samples)
    for centre in rng.uniform(900, 2100, 8):
        claps = (rng.random(samples) < 14 / SAMPLING_RATE) * rng.uniform(0.3, 1.0, samples)
        result += signal.fftconvolve(claps, burst(rng, 0.03, 0.7 * centre, 1.5 * centre, 0.005))[:samples]
    return result


def laughter(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One laugh, a falling row of breathy vowels; waveform of shape `(samples,)`."""
    pieces = []
    for index, time in enumerate(np.arange(0, seconds - 0.15, 0.21)):
        frequency = np.linspace(1.12, 0.92, num_samples(0.13)) * 250 * pitch * 0.95**index
        pieces.append((time, voiced(rng, frequency, (750, 1300, 2500), 0.3) * swell(0.13, 0.02, 0.06) * 0.9**index))
        pieces.append((time + 0.12, 0.15 * band_noise(rng, num_samples(0.07), 900, 4000) * swell(0.07, 0.02, 0.03)))
    return scatter(num_samples(seconds), pieces)


def footsteps(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Heel and sole of even steps; waveform of shape `(samples,)`."""
    pieces = []
    for time in regular_times(rng, seconds, 0.6 / speed, 0.03):
        pieces.append((time, rng.uniform(0.8, 1.2) * burst(rng, 0.1, 70, 420, 0.02)))
        pieces.append((time + 0.06, 0.3 * band_noise(rng, num_samples(0.07), 1200, 4500) * swell(0.07, 0.02, 0.04)))
    return scatter(num_samples(seconds), pieces)


def knocking(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One knock on wood; waveform of shape `(samples,)`."""
    body = strike(seconds, [(190, 1.0, 0.03), (430, 0.9, 0.022), (910, 0.5, 0.012)])
    return rng.uniform(0.85, 1.15) * (body + 0.25 * burst(rng, seconds, 800, 4000, 0.004))


def hammer(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One blow on metal; waveform of shape `(samples,)`."""
    partials = [(1650, 1.0, 0.09), (2730, 0.8, 0.07), (4090, 0.6, 0.05), (5480, 0.4, 0.03)]
    body = strike(seconds, [(frequency * pitch, amplitude, tau) for frequency, amplitude, tau in partials])
    return rng.uniform(0.85, 1.15) * (body + 0.4 * burst(rng, seconds, 300, 6000, 0.006))


def glass(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """A pane that shatters and its falling shards; waveform of shape `(samples,)`."""
    pieces = [(0.0, 1.5 * burst(rng, 0.4, 1500, 7500, 0.05))]
    for _ in range(45):
        shard = strike(0.2, [(rng.uniform(2600, 7400), rng.uniform(0.2, 0.7), rng.uniform(0.01, 0.05))])
        pieces.append((min(rng.exponential(0.14), seconds - 0.1), shard))
    return scatter(num_samples(seconds), pieces) * swell(seconds, 0.001, 0.1)


def gunshot(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One abrupt bang; waveform of shape `(samples,)`."""
    blast = rng.standard_normal(num_samples(seconds)) * decay(seconds, 0.022)
    return blast + 0.8 * burst(rng, seconds, 50, 250, 0.1) + 0.12 * burst(rng, seconds, 200, 2500, 0.15)


def snoring(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One rattling breath; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    rattle = (1 - phase_of(np.full(samples, 27 * pitch) * (0.9 + 0.2 * wander(rng, samples, 3))) % 1.0) ** 3
    source = rattle * band_noise(rng, samples, 80, 2500)
    return resonate(source, (210 * pitch, 120, 1.0), (1000, 300, 0.7)) * swell(seconds, 0.5, 0.35)
