import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_dict.analysis.measures.peaks import fit, interval, peak, slope
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.sections.ridge import best_l1

GRID = 10 ** np.arange(-3, 0.1, 0.25)


def cells(power: float, sizes=(64, 128, 256, 512), scaling: str = "none") -> pd.DataFrame:
    """MMCS that is a parabola in ln L1 with its best L1 growing as size^power."""
    rows = [
        {
            "family": scaling, "l1_scaling": scaling, "size": size, "axis": "l1", "l1": l1,
            "mmcs": 0.9 - 0.02 * np.log(l1 / (0.03 * (size / 128) ** power)) ** 2,
        }
        for size in sizes
        for l1 in GRID
    ]  # fmt: skip
    return pd.DataFrame(rows)


@given(st.floats(-6, -1), st.floats(0.01, 0.5))
def test_the_peak_of_a_parabola_in_log_l1_is_found_exactly(centre: float, width: float):
    y = 0.8 - width * (np.log(GRID) - centre) ** 2
    l1, mmcs, interior = peak(GRID, y)
    assert interior
    assert np.log(l1) == pytest.approx(centre, abs=1e-6)
    assert mmcs == pytest.approx(0.8, abs=1e-6)


def test_a_peak_at_the_end_of_the_grid_is_not_taken_for_a_maximum():
    assert peak([0.1, 0.2, 0.3], [3.0, 2.0, 1.0]) == (0.1, 3.0, False)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_slope_of_a_vertical_and_of_a_diagonal_ridge_is_recovered(power: float):
    ridges, peaks = fit(cells(power))
    (found,) = ridges.to_dict("records")
    assert found["slope"] == pytest.approx(power, abs=1e-6)
    assert (found["low"], found["high"]) == pytest.approx((power, power), abs=1e-5)
    assert peaks["interior"].all()


def test_the_jackknife_interval_widens_with_the_scatter_of_the_peaks():
    sizes = np.array([64.0, 128, 256, 512])
    low, high = interval(sizes, np.array([0.01, 0.03, 0.02, 0.05]))
    assert low < slope(sizes, np.array([0.01, 0.03, 0.02, 0.05]))[0] < high
    assert high - low > 0.5


def test_without_three_peaks_inside_the_grid_no_slope_is_given():
    ridges, peaks = fit(cells(0.0, sizes=(64, 128)))
    assert ridges["slope"].isna().tolist() == [True]
    assert len(peaks) == 2


def test_without_three_l1_there_is_no_ridge():
    table = cells(0.0)
    for few in (table[table["l1"] < 2e-3], table[:0]):
        assert all(frame.empty for frame in fit(few))


def test_each_family_has_its_own_ridge():
    ridges, _ = fit(pd.concat([cells(0.0), cells(1.0, scaling="dict_size")]))
    assert ridges["family"].tolist() == ["none", "dict_size"]
    assert ridges["divided"].tolist() == [False, True]
    assert ridges["slope"].tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_no_ridge_is_left_out_of_the_figure():
    names = [f"kind {i}" for i in range(7)]
    every = pd.concat([cells(0.0).assign(family=name) for name in names])
    with figures.style():
        figure = best_l1(*fit(every), [*GRID])
        figure.canvas.draw()
        legend = figure.axes[0].get_legend()
        assert legend is not None
        shown = [text.get_text().partition("\n")[0] for text in legend.get_texts()]
        figures.plt.close(figure)
    assert shown == names
