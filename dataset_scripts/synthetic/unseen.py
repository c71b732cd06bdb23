"""
Kinds of sound that the synthetic corpus keeps for its splits of unseen kinds: no training split ever holds them.

The functions are like those in sounds.py.
"""

import numpy as np
from scipy import signal
from sounds import (
    SAMPLING_RATE,
    band_noise,
    burst,
    chirp,
    decay,
    harmonics,
    num_samples,
    regular_times,
    resonate,
    sawtooth,
    scatter,
    strike,
    swell,
    time_axis,
    wander,
)


def rooster(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One crow of four syllables, the last long and falling; waveform of shape `(samples,)`."""
    pieces = []
    for start, length, low, high in ((0.0, 0.16, 620, 700), (0.2, 0.2, 700, 900), (0.44, 0.18, 760, 820)):
        glide = np.geomspace(low, high, num_samples(length)) * pitch
        pieces.append((start, sawtooth(glide) * swell(length, 0.03, 0.04)))
    length = seconds - 0.66
    fall = 900 * pitch * np.geomspace(1.0, 0.72, num_samples(length))
    pieces.append((0.66, 1.3 * sawtooth(fall) * swell(length, 0.05, 0.25)))
    return resonate(scatter(num_samples(seconds), pieces), (1300, 400, 1.0), (2600, 600, 0.7))


def duck(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One nasal quack; waveform of shape `(samples,)`."""
    voice = sawtooth(210 * pitch * np.geomspace(1.1, 0.85, num_samples(seconds)))
    source = voice * (1 + 0.5 * rng.standard_normal(len(voice)))
    return resonate(source, (1100 * pitch**0.3, 180, 1.0), (2300, 260, 0.9)) * swell(seconds, 0.02, 0.12)


def sheep(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One trembling bleat; waveform of shape `(samples,)`."""
    time = time_axis(seconds)
    tremble = 1 + 0.5 * np.sin(2 * np.pi * 9 * time)
    source = sawtooth(300 * pitch * (1 + 0.05 * np.sin(2 * np.pi * 9 * time + 1)))
    return resonate(source, (620, 140, 1.0), (1500, 220, 0.8), (2500, 300, 0.3)) * tremble * swell(seconds, 0.1, 0.2)


def mosquito(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """A thin buzz that comes near and goes; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    return harmonics(560 * pitch * (0.95 + 0.1 * wander(rng, samples, 2)), 8, 0.5) * (0.2 + wander(rng, samples, 1.5))


def kettle(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Steam that whistles ever higher; waveform of shape `(samples,)`."""
    frequency = 1500 * pitch * np.geomspace(1.0, 1.35, num_samples(seconds))
    return harmonics(frequency, 3, 2.0) + 0.5 * band_noise(rng, len(frequency), 1500, 6000)


def doorbell(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Two chimes, the second a third lower; waveform of shape `(samples,)`."""
    pieces = []
    for start, frequency in ((0.0, 660 * pitch), (0.45, 528 * pitch)):
        partials = [(frequency, 1.0, 0.35), (3 * frequency, 0.3, 0.12), (5.2 * frequency, 0.1, 0.05)]
        pieces.append((start, strike(seconds - start, partials)))
    return scatter(num_samples(seconds), pieces)


def chainsaw(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """A two-stroke motor that races and falls back; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    motor = sawtooth(105 * pitch * (0.7 + 0.6 * wander(rng, samples, 1.2)))
    rough = motor * (1 + 0.6 * rng.standard_normal(samples))
    return resonate(rough, (700, 400, 1.0), (2200, 900, 1.0), (4200, 1500, 0.6))


def typewriter(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """Hurried uneven clacks; waveform of shape `(samples,)`."""
    pieces = []
    for time in regular_times(rng, seconds, 0.17 / speed, 0.2):
        clack = strike(0.06, [(1150, 1.0, 0.008), (3300, 0.6, 0.004)]) + 0.7 * burst(rng, 0.06, 1500, 7000, 0.006)
        pieces.append((time, rng.uniform(0.6, 1.2) * clack))
    return scatter(num_samples(seconds), pieces)


def jet(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """A roar with a turbine's whine; waveform of shape `(samples,)`."""
    samples = num_samples(seconds)
    roar = band_noise(rng, samples, 120, 1800) * (0.8 + 0.2 * wander(rng, samples, 4))
    return roar + 0.3 * harmonics(2900 * pitch * (0.99 + 0.02 * wander(rng, samples, 1)), 2, 1.0)


def drum(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One beat, a low tone that drops; waveform of shape `(samples,)`."""
    skin = chirp(seconds, 170 * pitch, 75 * pitch) * decay(seconds, 0.1)
    return rng.uniform(0.85, 1.15) * (skin + 0.2 * burst(rng, seconds, 300, 2500, 0.008))


def coin(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """A coin that falls and bounces; waveform of shape `(samples,)`."""
    pieces, time, gap, level = [], 0.0, 0.16, 1.0
    while time < seconds - 0.05:
        ring = strike(0.2, [(3400, 1.0, 0.04), (5150, 0.8, 0.03), (6900, 0.5, 0.02)])
        pieces.append((time, level * ring))
        time, gap, level = time + gap, 0.72 * gap + 0.01, 0.75 * level
    return scatter(num_samples(seconds), pieces)


def cough(rng: np.random.Generator, seconds: float, pitch: float, speed: float) -> np.ndarray:
    """One cough, a burst of breath and a short voice; waveform of shape `(samples,)`."""
    voice = sawtooth(190 * pitch * np.geomspace(1.2, 0.7, num_samples(seconds)))
    source = 0.5 * voice * decay(seconds, 0.12, 0.05) + rng.standard_normal(len(voice)) * decay(seconds, 0.05, 0.004)
    return resonate(source, (650, 200, 1.0), (1250, 260, 0.7), (2900, 500, 0.4))


def resynthesise(waveform: np.ndarray, rng: np.random.Generator, window: int = 512, smoothing: int = 3) -> np.ndarray:
    """
    Returns a waveform of shape `(samples,)` as a poor vocoder would: with the magnitudes of the short-time Fourier
    transform smoothed over neighbouring bands, and half-random phases.
    """
    transform = signal.ShortTimeFFT(signal.windows.hann(window, sym=False), window // 4, SAMPLING_RATE)
    spectrum = transform.stft(waveform)  # (window / 2 + 1, frames)
    kernel = np.ones((smoothing, 1)) / smoothing
    magnitudes = signal.fftconvolve(np.abs(spectrum), kernel, mode="same")
    phases = np.angle(spectrum) + rng.uniform(-np.pi / 2, np.pi / 2, spectrum.shape)
    return transform.istft(magnitudes * np.exp(1j * phases), k1=len(waveform))
