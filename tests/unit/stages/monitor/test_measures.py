from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.stages.monitor import measures
from airflow_ml_provider.stages.monitor.measures import (
    MISSING,
    RARE,
    UNSEEN,
    Pair,
    cells,
    chi_square,
    fine,
    gamma_tail,
    jensen_shannon,
    kolmogorov_smirnov,
    kolmogorov_tail,
    null_test,
    psi,
    wasserstein,
)
from airflow_ml_provider.stages.monitor.scan import NumberScan, TextScan
from airflow_ml_provider.stages.monitor.sketch import CAP, Numbers, Texts

np = pytest.importorskip("numpy")
pa = pytest.importorskip("pyarrow")
stats = pytest.importorskip("scipy.stats")


def numbers(values):
    scan = NumberScan()
    scan.add(pa.array(values, pa.float64()))
    return scan.result()


def texts(values):
    scan = TextScan()
    scan.add(pa.array(values, pa.string()))
    return scan.result()


def pair(reference, current):
    return Pair(list(range(len(reference))), reference, current)


counts = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8)


class TestPsi:
    def test_by_hand(self):
        # (.3-.5) ln(.3/.5) + (.7-.5) ln(.7/.5)
        want = -0.2 * math.log(0.6) + 0.2 * math.log(1.4)
        assert psi(pair([50, 50], [30, 70])) == pytest.approx(want)

    def test_empty_cell_counts_as_half_a_row(self):
        want = (0.5 / 100 - 0.5) * math.log(0.01) + 0.5 * math.log(2)
        assert psi(pair([50, 50], [0, 100])) == pytest.approx(want)

    @given(counts)
    def test_zero_for_equal_shares_and_never_negative(self, rows):
        a, b = [r[0] for r in rows], [r[1] for r in rows]
        assert psi(pair(a, [3 * x for x in a])) == pytest.approx(0, abs=0.2 if 0 in a else 1e-12)
        assert psi(pair(a, b)) >= 0
        assert psi(pair(a, b)) == pytest.approx(psi(pair(b, a)))


class TestJensenShannon:
    @given(counts)
    def test_equals_scipy(self, rows):
        from scipy.spatial.distance import jensenshannon

        a, b = [r[0] for r in rows], [r[1] for r in rows]
        got = jensen_shannon(pair(a, b))
        if sum(a) and sum(b):
            assert got == pytest.approx(jensenshannon(a, b, base=2), abs=1e-6)
        else:
            assert got == 0.0

    def test_nothing_in_common(self):
        assert jensen_shannon(pair([5, 0], [0, 9])) == 1.0


class TestKolmogorovSmirnov:
    @pytest.mark.parametrize("shift", [0.0, 0.05, 0.3])
    def test_statistic_equals_scipy_where_bins_are_fine(self, shift):
        rng = np.random.default_rng(0)
        a, b = rng.normal(0, 1, 20_000), rng.normal(shift, 1, 5000)
        statistic, p = kolmogorov_smirnov(fine(numbers(a), numbers(b))[0])
        want = stats.ks_2samp(a, b, method="asymp")
        assert statistic == pytest.approx(want.statistic, abs=0.004)
        assert p == pytest.approx(want.pvalue, rel=0.25, abs=0.02)

    def test_whole_numbers_are_exact(self):
        rng = np.random.default_rng(0)
        a, b = rng.poisson(5, 3000), rng.poisson(5.4, 700)
        statistic, _ = kolmogorov_smirnov(fine(numbers(a), numbers(b))[0])
        assert statistic == pytest.approx(stats.ks_2samp(a, b).statistic)

    @pytest.mark.parametrize("x", [0.05, 0.3, 0.8, 1.17, 1.19, 1.5, 3.0, 6.0])
    def test_tail_equals_scipy(self, x):
        assert kolmogorov_tail(x) == pytest.approx(stats.kstwobign.sf(x), rel=1e-9, abs=1e-15)

    def test_without_rows(self):
        assert kolmogorov_smirnov(pair([0], [3])) == (0.0, 1.0)


class TestChiSquare:
    def test_equals_scipy(self):
        table = [[200, 150, 90], [60, 70, 20]]
        want = stats.chi2_contingency(table, correction=False)
        assert chi_square(pair(*table)) == pytest.approx((want.statistic, want.pvalue))

    def test_two_values_get_yates_correction(self):
        table = [[200, 150], [60, 70]]
        want = stats.chi2_contingency(table)
        assert chi_square(pair(*table)) == pytest.approx((want.statistic, want.pvalue))

    def test_small_expected_counts_are_pooled(self):
        # 60 of 360 rows are current: the last three have 1, 0.5 and 4 expected rows there, together 5.5.
        got = chi_square(pair([150, 120, 6, 2, 22], [30, 23, 0, 1, 2]))
        want = stats.chi2_contingency([[150, 120, 30], [30, 23, 3]], correction=False)
        assert got[0] == pytest.approx(want.statistic, rel=1e-2)

    def test_what_is_still_too_small_goes_to_the_smallest(self):
        got = chi_square(pair([150, 120, 60, 1], [30, 20, 10, 1]))
        want = stats.chi2_contingency([[150, 120, 61], [30, 20, 11]], correction=False)
        assert got == pytest.approx((want.statistic, want.pvalue))

    @pytest.mark.parametrize("rows", [([5], [9]), ([0, 0], [3, 4]), ([1, 1], [1, 1])])
    def test_nothing_to_test(self, rows):
        assert chi_square(pair(*rows)) == (0.0, 1.0)

    @settings(deadline=None)
    @given(st.integers(1, 400), st.floats(0.001, 2000))
    def test_tail_equals_scipy(self, dof, x):
        assert gamma_tail(dof / 2, x / 2) == pytest.approx(stats.chi2.sf(x, dof), rel=1e-8, abs=1e-14)


class TestNullTest:
    def test_equals_scipy(self):
        want = stats.chi2_contingency([[100, 20], [900, 130]])
        assert null_test(Numbers(900, 100), Numbers(130, 20)) == pytest.approx(want.pvalue)

    def test_first_missing_values_ever(self):
        assert null_test(Texts(10_000, 0), Texts(460, 40)) < 1e-30
        assert null_test(Texts(10_000, 0), Texts(500, 0)) == 1.0


class TestWasserstein:
    def test_whole_numbers_are_exact(self):
        rng = np.random.default_rng(0)
        a, b = rng.poisson(5, 3000), rng.poisson(9, 700)
        assert wasserstein(numbers(a), numbers(b)) == pytest.approx(stats.wasserstein_distance(a, b))

    def test_within_half_a_bin(self):
        rng = np.random.default_rng(0)
        a, b = rng.normal(0, 1, 50_000), rng.normal(0.5, 1, 5000)
        assert wasserstein(numbers(a), numbers(b)) == pytest.approx(stats.wasserstein_distance(a, b), rel=0.01)

    def test_undefined(self):
        assert wasserstein(numbers([1.0]), numbers([None])) is None
        assert wasserstein(numbers([1.0, math.inf]), numbers([1.0])) is None


class TestCells:
    def test_deciles_of_the_reference(self):
        reference, current = numbers(list(range(100))), numbers([5.0] * 10 + [95.0] * 10 + [None] * 5)
        got = cells(reference, current)
        assert list(got.keys) == [*range(10), MISSING]
        assert list(got.reference) == [10] * 10 + [0]
        assert list(got.current) == [10, *[0] * 8, 10, 5]

    def test_a_frequent_value_keeps_a_cell_of_its_own(self):
        reference = numbers([0.0] * 60 + list(range(1, 41)))
        assert sorted(cells(reference, reference).reference)[-1] == 60

    def test_values_beyond_the_reference_join_the_outer_cells(self):
        got = cells(numbers(list(range(100))), numbers([-50.0, 1000.0]))
        assert (got.current[0], got.current[9]) == (1, 1)

    def test_frequent_rare_unseen_and_missing_values(self):
        reference = texts(["UA"] * 600 + ["AA"] * 390 + ["OO"] * 10 + [None] * 5)
        current = texts(["UA"] * 60 + ["AA"] * 30 + ["XX"] * 7 + ["YY"] * 3)
        got = cells(reference, current)
        assert dict(zip(got.keys, zip(got.reference, got.current, strict=True), strict=True)) == {
            "AA": (390, 30), "UA": (600, 60), RARE: (10, 0), UNSEEN: (0, 10), MISSING: (5, 0),
        }  # fmt: skip

    def test_more_values_than_names_are_kept_for(self):
        many = texts([f"N{i}" for i in range(CAP + 1)] * 3)
        same, other = cells(many, many), cells(many, texts(["N1"] * 1000))
        assert psi(same) == 0.0
        assert jensen_shannon(other) > 0.5


class TestHistogram:
    def test_bars_hold_all_rows(self):
        bars = measures.histogram(numbers(list(range(1000))), numbers([float(i) for i in range(500, 600)]), 10)
        assert len(bars) == 10
        assert sum(b[1] for b in bars) == pytest.approx(1)
        assert sum(b[2] for b in bars) == pytest.approx(1)
        assert bars[0][0] == pytest.approx(9, abs=2)

    @pytest.mark.parametrize("values", [[7.0] * 5, [0.0, 1.0, 1e30, math.inf]])
    def test_odd_columns(self, values):
        bars = measures.histogram(numbers(values), numbers(values))
        assert not bars or sum(b[1] for b in bars) == pytest.approx(1)

    def test_few_values_get_a_bar_each(self):
        assert measures.histogram(numbers([5.0, 7.0, 7.0, 7.0]), numbers([7.0, 9.0])) == [
            (5.0, 0.25, 0.0), (7.0, 0.75, 0.5), (9.0, 0.0, 0.5),
        ]  # fmt: skip

    def test_without_rows(self):
        assert measures.histogram(numbers([None]), numbers([1.0])) == []


def test_kinds_must_agree():
    with pytest.raises(TypeError, match="float and string"):
        fine(Numbers(), Texts())
