"""What a policy that was trained on still does of what it did before: counted by task, on the scenes both played."""

from athena_vla.evaluate import tables
from athena_vla.evaluate.results import EpisodeResult
from athena_vla.evaluate.summary import Kept, kept_by_task

TASKS = ("reach", "reach", "reach", "wave", "wave", "squat")


def played(solved: str, actor: str = "x", scenes: range = range(6)) -> list[EpisodeResult]:
    """One episode a scene; a one where it was solved."""
    return [
        EpisodeResult(actor, i, TASKS[i], "", solved[i] == "1", None, 1, 0, {}, {}, 0, 0.0, 0.0, (), {}) for i in scenes
    ]


def test_scenes_are_counted_by_who_solved_them() -> None:
    found = kept_by_task(played("110101"), played("101100"))
    assert found == {
        "reach": Kept(kept=1, lost=1, gained=1),
        "squat": Kept(lost=1),
        "wave": Kept(kept=1, neither=1),
    }
    total = sum(sum(k.to_dict().values()) for k in found.values())
    assert total == len(TASKS)


def test_scenes_that_one_of_them_never_played_do_not_count() -> None:
    found = kept_by_task(played("111111", scenes=range(1, 4)), played("000000"))
    assert found == {"reach": Kept(lost=2), "wave": Kept(lost=1)}
    assert kept_by_task([], played("111111")) == {}


def test_the_table_sums_over_tasks() -> None:
    text = tables.kept_table("tuned", "before", kept_by_task(played("110101"), played("101100")))
    assert text.splitlines()[0].split() == ["tuned", "of", "before", "kept", "lost", "gained", "neither"]
    assert text.splitlines()[-1].split() == ["all", "2", "2", "1", "1"]
