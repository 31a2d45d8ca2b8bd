"""Schedules of TPU kernels: bundles counted by loop depth."""

from zipper_jax.aot.bundles import Schedule, parse, schedules

LISTING = """= control target key start
LB: loop body
= control target key end

     0   :  { %s1 = smov 1 /* materialized
 a comment of several lines { */ }
 0x1 LB: > { %s2 = smov 2 /* Start region 3 */ }
 0x2   : > { %3 = sbr.rel (%p1) target = $region4 }
 0x3   :  {} /* delay */
 0x4 LB: >> { %v5 = vld [vmem:[%s2] sm:$0xff] }
 0x5   : >> { %v6 = vadd.f32 %v5, %v5 }
 0x6   :  {}
 0x7 PF: > { %s7 = smov 3 }
 0x8 LB: >> { %v8 = vld [vmem:[%s2] sm:$0xff] }
 0x9 PF: > { %s9 = smov 3 }
 0xa   :  { %s10 = smov 4 }
"""


def test_bundles_are_counted_by_loop():
    """Empty bundles belong to the loop before them."""
    assert parse(LISTING) == Schedule(once=2, step=5, loops=(3, 1))


def test_kernels_are_found_by_name(tmp_path):
    (tmp_path / "1795-interval_attention.1-72-final_bundles.txt").write_text(LISTING)
    (tmp_path / "1795-interval_attention.1-73-schedule-analysis_final_bundles.txt").write_text("")
    assert schedules(tmp_path) == {"interval_attention.1": parse(LISTING)}
