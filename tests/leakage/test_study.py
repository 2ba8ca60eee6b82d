"""The study on a tiny model: every number has its place on the page."""

from experiments.leakage.leakage_page import page
from experiments.leakage.study import Sizes, Study


def test_all_attacks_on_membership_have_lines_and_a_row_on_the_page(victim):
    sizes = Sizes(longest=200, public=150, held=4, clients=2, targets=5, few=2, many=5)
    study = Study(victim, sizes)
    lines = [*study.units(), *study.experts(), *study.honest()]
    text = page(lines, victim.config, sizes, 1.0, 1.0)
    for line in lines:
        assert line.variant in text or line.measure in text
    assert {"gate's units", "experts' vectors", "gate weights told", "honest: cosine"} <= {
        line.variant for line in lines
    }
    assert all(0 <= line.value <= 1 for line in lines if line.measure == "AUC")
