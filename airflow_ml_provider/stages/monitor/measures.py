"""Drift measures between two sketches of a column, and the tests that tell drift from chance. Pure Python.

Of one column there are two views: the *fine* one (every bin of the histogram, every value), for the tests and the
Wasserstein distance, and the *cells*: about ten groups that hold equal shares of the reference (or the frequent values
of a text column), one for missing values, one for values that the reference does not know. PSI and the Jensen-Shannon
distance are taken over the cells, since over fine bins they would measure the size of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from airflow_ml_provider.stages.monitor.sketch import Column, Numbers, Texts, coarsen, lower_edge

CELLS = 10
# A value gets a cell of its own when the reference lets expect this many of it in the batch, or twice as many came.
MIN_EXPECTED_CELL = 10.0
# Smallest expected count of the chi-square approximation (Cochran, 1954).
MIN_EXPECTED_TEST = 5.0
MISSING, UNSEEN, RARE = "(missing)", "(unseen)", "(rare)"


@dataclass(frozen=True)
class Pair:
    """Counts of the same things in the reference and in the current batch.

    Attributes:
        keys: the things: codes of bins in ascending order, values, or names of cells.
        reference: counts in the reference.
        current: counts in the current batch.
    """

    keys: Sequence[Any]
    reference: Sequence[int]
    current: Sequence[int]

    @classmethod
    def of(cls, reference: Mapping[Any, int], current: Mapping[Any, int]) -> Pair:
        """Return the counts of all keys that occur in either."""
        keys = sorted({*reference, *current})
        return cls(keys, [reference.get(k, 0) for k in keys], [current.get(k, 0) for k in keys])

    @property
    def sizes(self) -> tuple[int, int]:
        """Both totals."""
        return sum(self.reference), sum(self.current)

    def shares(self) -> Iterator[tuple[float, float]]:
        """Give both shares of each key; neither side may be empty."""
        n, m = self.sizes
        for a, b in zip(self.reference, self.current):
            yield a / n, b / m


def fine(reference: Column, current: Column) -> tuple[Pair, int]:
    """Return the counts of two sketches in the finest bins or values that both have, and the shift of the bins."""
    if isinstance(reference, Numbers) and isinstance(current, Numbers):
        shift = max(reference.shift, current.shift)
        return Pair.of(
            coarsen(reference.bins, shift - reference.shift), coarsen(current.bins, shift - current.shift)
        ), shift
    if isinstance(reference, Texts) and isinstance(current, Texts):
        if reference.by_name and current.by_name:
            return Pair.of(reference.values, current.values), 0
        return Pair.of(reference.bucketed(), current.bucketed()), 0
    raise TypeError(f"sketches of different kinds: {reference.kind} and {current.kind}")


def cells(reference: Column, current: Column) -> Pair:
    """Return the counts of two sketches in few cells, missing values included; cells that nobody is in are left out."""
    pair, _ = fine(reference, current)
    group = decile_cells if isinstance(reference, Numbers) else _value_cells
    counts: dict[Any, list[int]] = {}
    for name, a, b in zip(group(pair), pair.reference, pair.current):
        cell = counts.setdefault(name, [0, 0])
        cell[0] += a
        cell[1] += b
    if reference.nulls or current.nulls:
        counts[MISSING] = [reference.nulls, current.nulls]
    return Pair(list(counts), [c[0] for c in counts.values()], [c[1] for c in counts.values()])


def decile_cells(pair: Pair) -> Iterator[int]:
    """Give the cell of each bin: the tenth of the reference in which the bin's middle lies."""
    total, below = max(1, sum(pair.reference)), 0
    for count in pair.reference:
        yield min(CELLS - 1, int(CELLS * (below + count / 2) / total))
        below += count


def _value_cells(pair: Pair) -> Iterator[Any]:
    n, m = pair.sizes
    for key, a, b in zip(pair.keys, pair.reference, pair.current):
        if not a:
            yield UNSEEN
        else:
            yield key if a / n * m >= MIN_EXPECTED_CELL or b >= 2 * MIN_EXPECTED_CELL else RARE


def psi(pair: Pair) -> float:
    r"""Return the population stability index, sum of (q - p) ln(q / p) over cells; 0 for equal shares.

    An empty cell counts as half a row, so that the index stays finite.
    """
    n, m = pair.sizes
    if not n or not m:
        return 0.0
    total = 0.0
    for a, b in zip(pair.reference, pair.current):
        if a or b:
            p, q = max(a, 0.5) / n, max(b, 0.5) / m
            total += (q - p) * math.log(q / p)
    return total


def jensen_shannon(pair: Pair) -> float:
    """Return the Jensen-Shannon distance to base 2: 0 for equal shares, 1 when no cell is in both."""
    if not all(pair.sizes):
        return 0.0
    divergence = 0.0
    for p, q in pair.shares():
        middle = (p + q) / 2
        divergence += sum(x * math.log2(x / middle) for x in (p, q) if x)
    return math.sqrt(min(1.0, max(0.0, divergence / 2)))


def kolmogorov_smirnov(pair: Pair) -> tuple[float, float]:
    """Return the two-sample KS statistic and its asymptotic p-value (Kolmogorov's distribution).

    Differences within one bin are not seen; where there are ties the p-value is too large rather than too small.
    """
    n, m = pair.sizes
    if not n or not m:
        return 0.0, 1.0
    f = g = statistic = 0.0
    for p, q in pair.shares():
        f, g = f + p, g + q
        statistic = max(statistic, abs(f - g))
    return statistic, kolmogorov_tail(math.sqrt(n * m / (n + m)) * statistic)


def kolmogorov_tail(x: float) -> float:
    """Return P(K > x) of Kolmogorov's distribution."""
    if x <= 0:
        return 1.0
    if x < 1.18:  # the series that converges fast for small x (Marsaglia, Tsang and Wang, 2003)
        series = sum(math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 6))
        return min(1.0, max(0.0, 1 - math.sqrt(2 * math.pi) / x * series))
    return min(1.0, max(0.0, 2 * sum((1 if k % 2 else -1) * math.exp(-2 * k * k * x * x) for k in range(1, 11))))


def chi_square(pair: Pair) -> tuple[float, float]:
    """Return the statistic and p-value of the chi-square test of homogeneity.

    Keys with fewer than 5 expected rows are pooled, if need be with the smallest of the others; two keys get Yates's
    correction. Without two keys there is nothing to test: (0, 1).
    """
    n, m = pair.sizes
    if not n or not m:
        return 0.0, 1.0
    columns = _pooled(pair, min(n, m) / (n + m))
    if len(columns) < 2:
        return 0.0, 1.0
    statistic = 0.0
    for a, b in columns:
        for observed, expected in ((a, (a + b) * n / (n + m)), (b, (a + b) * m / (n + m))):
            distance = abs(observed - expected)
            if len(columns) == 2:
                distance -= min(0.5, distance)
            statistic += distance**2 / expected
    return statistic, gamma_tail((len(columns) - 1) / 2, statistic / 2)


def _pooled(pair: Pair, share: float) -> list[tuple[int, int]]:
    occurring = [(a, b) for a, b in zip(pair.reference, pair.current) if a + b]
    large = sorted((c for c in occurring if sum(c) * share >= MIN_EXPECTED_TEST), key=sum)
    small = [c for c in occurring if sum(c) * share < MIN_EXPECTED_TEST]
    if not small:
        return large
    rest = (sum(c[0] for c in small), sum(c[1] for c in small))
    if sum(rest) * share < MIN_EXPECTED_TEST and large:
        first = large.pop(0)
        rest = (rest[0] + first[0], rest[1] + first[1])
    return [*large, rest]


def null_test(reference: Column, current: Column) -> float:
    """Return the p-value that both sketches have the same share of missing values (2 × 2 table, Yates's correction)."""
    missing, present = (reference.nulls, current.nulls), (reference.count, current.count)
    n, m = reference.nulls + reference.count, current.nulls + current.count
    if not (n and m and sum(missing) and sum(present)):
        return 1.0
    statistic = 0.0
    for a, b in (missing, present):
        for observed, expected in ((a, (a + b) * n / (n + m)), (b, (a + b) * m / (n + m))):
            distance = abs(observed - expected)
            statistic += (distance - min(0.5, distance)) ** 2 / expected
    return gamma_tail(0.5, statistic / 2)


def gamma_tail(a: float, x: float) -> float:
    """Return the regularised upper incomplete gamma function Q(a, x); chi-square's tail is Q(dof / 2, x / 2).

    Series for small x, continued fraction (modified Lentz) for large x; Numerical Recipes, 3rd ed., section 6.2.
    """
    if x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        k = a
        while term > total * 1e-16:
            k += 1
            term *= x / k
            total += term
        return min(1.0, max(0.0, 1 - total * scale))
    b = x + 1 - a
    c, d = math.inf, 1 / b
    fraction, step, i = d, 0.0, 0
    while abs(step - 1) > 1e-15 and i < 10_000:
        i += 1
        factor = i * (a - i)
        b += 2
        d = 1 / (factor * d + b)
        c = b + factor / c
        step = d * c
        fraction *= step
    return min(1.0, max(0.0, fraction * scale))


def wasserstein(reference: Numbers, current: Numbers) -> Optional[float]:
    """Return the first Wasserstein distance in the unit of the column; none without values or with infinite ones.

    A bin stands for its middle, so the error is at most half the width of a bin.
    """
    pair, shift = fine(reference, current)
    if not all(pair.sizes):
        return None
    places = [middle(code, shift) for code in pair.keys]
    if not all(map(math.isfinite, places)):
        return None
    f = g = total = 0.0
    for (p, q), here, there in zip(pair.shares(), places, places[1:]):
        f, g = f + p, g + q
        total += abs(f - g) * (there - here)
    return total


def middle(code: int, shift: int) -> float:
    """Return the value that stands for a bin."""
    low = lower_edge(code, shift)
    return (low + lower_edge(code + 1, shift)) / 2 if shift else low


def histogram(reference: Numbers, current: Numbers, bars: int = 24) -> list[tuple[float, float, float]]:
    """Return (left edge, share of the reference, share of the current rows) of bars of equal width, for a picture.

    The bars span the middle 98 % of both; what lies outside is in the first and last bar. A column with so few
    different values gets a bar for each.
    """
    pair, shift = fine(reference, current)
    if not all(pair.sizes):
        return []
    places = [middle(code, shift) for code in pair.keys]
    if shift == 0 and len(places) <= bars and all(map(math.isfinite, places)):
        return [(place, p, q) for place, (p, q) in zip(places, pair.shares())]
    bounds = [_quantile(places, counts, q) for counts in (pair.reference, pair.current) for q in (0.01, 0.99)]
    low, high = min(bounds), max(bounds)
    if not (math.isfinite(low) and math.isfinite(high)):
        return []
    width = (high - low) / bars or 1.0
    heights = [[0.0, 0.0] for _ in range(bars)]
    for place, (p, q) in zip(places, pair.shares()):
        bar = heights[min(bars - 1, max(0, int((min(max(place, low), high) - low) / width)))]
        bar[0] += p
        bar[1] += q
    return [(low + i * width, p, q) for i, (p, q) in enumerate(heights)]


def _quantile(places: Sequence[float], counts: Sequence[int], q: float) -> float:
    wanted, seen = q * sum(counts), 0
    for place, count in zip(places, counts):
        seen += count
        if seen >= wanted and count:
            return place
    return places[-1]
