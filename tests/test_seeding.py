"""Seeds derived by name."""

from mops_fl.seeding import derive, numpy_generator, python_generator


def test_a_purpose_fixes_its_seed_and_purposes_do_not_share_theirs():
    assert derive(0, "order", 1, 2) == derive(0, "order", 1, 2)
    seeds = {derive(s, "order", p, r) for s in range(3) for p in range(20) for r in range(20)}
    assert len(seeds) == 3 * 20 * 20
    assert derive(0, "order", 1, 12) != derive(0, "order", 11, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_values_do_not_change_between_versions():
    """A run can be repeated years later: the values are part of the format."""
    assert derive(0, "sampling", 1) == 2841739436065113520
    assert python_generator(0, "x").randrange(1000) == 51
    assert numpy_generator(0, "x").integers(1000) == 995
