"""Rotary positions in float64 NumPy: complex numbers, one feature pair at a time."""

import math

import numpy as np


def rotate(x, positions, frequencies, *, layout="half", sections=None, attention_factor=1.0):
    """`x` `[*B, T, N, D]`, positions `[*#B, T]` or, with sections, `[*#B, T, A]`."""
    out = np.array(x, np.float64)
    half = len(frequencies)
    axes = np.repeat(np.arange(len(sections or [half])), sections or [half])
    places = np.asarray(positions, np.float64)[..., None] if sections is None else positions
    for i, frequency in enumerate(frequencies):
        a, b = (i, i + half) if layout == "half" else (2 * i, 2 * i + 1)
        angles = np.asarray(places, np.float64)[..., axes[i]] * float(frequency)
        z = np.asarray(x, np.float64)[..., a] + 1j * np.asarray(x, np.float64)[..., b]
        z = z * (attention_factor * np.exp(1j * angles))[..., None]  # the same for all heads
        out[..., a], out[..., b] = z.real, z.imag
    return out


def plain(rotated, base=10_000.0):
    return [base ** (-2 * i / rotated) for i in range(rotated // 2)]


def linear(rotated, base, factor):
    return [f / factor for f in plain(rotated, base)]


def ntk(rotated, base, factor):
    return plain(rotated, base * factor ** (rotated / (rotated - 2)))


def dynamic_ntk(rotated, base, factor, original_length, length):
    length = max(length, original_length)
    return ntk(rotated, base, factor * length / original_length - (factor - 1))


def yarn(rotated, base, factor, original_length, beta_fast=32, beta_slow=1, truncate=True):
    def turns_at(turns):  # the i, not whole, whose pair turns so often in the original length
        return rotated * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = turns_at(beta_fast), turns_at(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotated - 1)
    out = []
    for i, f in enumerate(plain(rotated, base)):
        slow = min(max((i - first) / max(last - first, 0.001), 0), 1)
        out.append((1 - slow) * f + slow * f / factor)
    return out


def llama3(rotated, base, factor, original_length, low=1.0, high=4.0):
    out = []
    for f in plain(rotated, base):
        turns = original_length * f / (2 * math.pi)
        if turns < low:
            f = f / factor
        elif turns <= high:
            smooth = (turns - low) / (high - low)
            f = (1 - smooth) * f / factor + smooth * f
        out.append(f)
    return out


def longrope(rotated, base, short_factors, long_factors, original_length, length):
    factors = long_factors if length > original_length else short_factors
    return [f / x for f, x in zip(plain(rotated, base), factors, strict=True)]
