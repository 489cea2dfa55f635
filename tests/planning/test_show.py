"""A plan as a table."""

from nanolit.planning.show import plan_table
from tests.planning.base_plans import base_plan


def test_the_table_shows_what_decides_the_run():
    table = plan_table(base_plan("recipe=classic", "model=d20", "cluster=modal_8xh100"))
    for text in (
        "560,988,160",
        "21,400",
        "3.917670e+19",
        "8 × H100",
        "47.0%",
        "fineweb_edu, 240 shard",
        "about 24.1 GB",
    ):
        assert text in table
