"""Result files of other programs: what is read, what is refused, and numbers that come from counting by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from athena_vla.cli import main
from athena_vla.errors import EvaluationError
from athena_vla.evaluate.outcomes import compare_results, read_outcomes

A = [True, True, False, False, True, False, True, True]
B = [True, True, True, True, True, False, True, False]


def write(path: Path, successes: list[bool], **more: Any) -> Path:
    rows = [{"scene": i, "success": s, "task": "push" if i % 2 else "point", **more} for i, s in enumerate(successes)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_two_files_are_compared_in_pairs(tmp_path: Path) -> None:
    result = compare_results([write(tmp_path / "old.jsonl", A), write(tmp_path / "new.jsonl", B)])
    assert result.reference == "new"
    assert [r.policy for r in result.rows] == ["old", "new"]
    assert [r.success.success for r in result.rows] == [5 / 8, 6 / 8]
    test = result.versus["old"].paired
    assert test is not None
    # By hand: scenes 2 and 3 only new, scene 7 only old, one neither; P(X <= 1 of 3) twice is 1.
    assert (test.only_first, test.only_second, test.both, test.neither) == (2, 1, 4, 1)
    assert test.exact_p == min(1.0, 2 * (math.comb(3, 0) + math.comb(3, 1)) / 2**3)
    assert result.rows[0].per_task["push"].n == 4
    assert "+2 -1" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["versus"]["old"]["shared"] == 8


def test_scenes_are_paired_by_name_and_not_by_line(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", B)
    lines = two.read_text().splitlines()
    two.write_text("\n".join([*reversed(lines), '{"scene": "extra", "success": true}']) + "\n")
    result = compare_results([one, two])
    test = result.versus["a"].paired
    assert test is not None
    assert (test.only_first, test.only_second) == (2, 1)
    assert any("share 8 of 9 and 8 episodes" in n for n in result.notes)


def test_repeated_scenes_are_numbered_and_said(tmp_path: Path) -> None:
    rows = [{"scene": "mug", "trial": t, "success": t > 0, "policy": p} for p in ("x", "y") for t in range(3)]
    both = tmp_path / "both.jsonl"
    both.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = compare_results([both])
    assert result.versus["x"].shared == 3
    assert any("more than once" in n for n in result.notes)


def test_policies_without_a_common_scene_are_two_samples(tmp_path: Path) -> None:
    other = tmp_path / "b.jsonl"
    other.write_text("".join(json.dumps({"scene": f"s{i}", "success": s}) + "\n" for i, s in enumerate(B)))
    result = compare_results([write(tmp_path / "a.jsonl", A), other])
    assert result.versus["a"].paired is None
    apart = result.versus["a"].difference
    assert apart.value == pytest.approx(6 / 8 - 5 / 8)
    assert apart.low < 0 < apart.high
    assert any("share no scene" in n for n in result.notes)


def test_keys_that_nobody_reads_are_named(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", A, grasp_force=3), write(tmp_path / "b.jsonl", B)
    assert any("grasp_force" in n for n in compare_results([a, b]).notes)


def test_setups_that_differ_are_not_compared(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", B)]
    for path, split in zip(paths, ("test", "train"), strict=True):
        path.write_text(json.dumps({"setup": {"split": split, "robot": "athena"}}) + "\n" + path.read_text())
    with pytest.raises(EvaluationError, match=r"other setups \(split\)"):
        compare_results(paths)


BAD = {
    "no success": ('{"scene": 1}', "line 1 lacks 'success'; it has: scene"),
    "a cut line": ('{"scene": 1, "success": true}\n{"scene": 2, "succ', "line 2 is cut, or is no JSON"),
    "a number for success": ('{"scene": 1, "success": 1}', "'success' is true or false, not 1"),
    "no object": ("[1]", "line 1 is no JSON object"),
    "a scene that is no name": ('{"scene": 1.5, "success": true}', "'scene' is a name or a whole number, not 1.5"),
    "a time that is none": ('{"scene": 1, "success": true, "time_to_success": NaN}', "number of seconds, not nan"),
    "a scene twice": ('{"scene": 1, "success": true}\n{"scene": 1, "success": true}', "stands in line 1 already"),
    "nothing": ("", "holds no episode"),
    "two names": ('{"scene": 1, "success": true, "policy": "a", "actor": "b"}', "both a policy 'a' and an actor 'b'"),
    "a negative count": ('{"scene": 1, "success": true, "violations": -1}', "'violations' is a whole number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_a_sentence_with_the_line(tmp_path: Path, name: str) -> None:
    content, sentence = BAD[name]
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(EvaluationError) as error:
        read_outcomes(path)
    assert sentence in str(error.value)
    assert str(path) in str(error.value)


def test_one_policy_is_not_enough(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", A)
    with pytest.raises(EvaluationError, match="Two policies are needed, 'a' was found"):
        compare_results([a])
    with pytest.raises(EvaluationError, match="given twice"):
        compare_results([a, a])
    with pytest.raises(EvaluationError, match="cannot be read"):
        compare_results([a, tmp_path / "nowhere.jsonl"])
    clash = write(tmp_path / "b.jsonl", B, policy="a")
    with pytest.raises(EvaluationError, match="policy 'a' stands in"):
        compare_results([a, clash])


def test_the_command_takes_files_or_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a.jsonl", A), write(tmp_path / "b.jsonl", B)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--results", str(a), str(b)])
    assert stop.value.code == 0
    assert "75% [41, 93]" in capsys.readouterr().out
    for words in (["compare"], ["compare", str(a)], ["compare", str(a), str(b), "--results", str(a), str(b)]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert "two bundles" in (told := capsys.readouterr().err) or "Two policies are needed" in told


def test_our_own_episode_files_are_result_files(tmp_path: Path) -> None:
    from athena_vla.evaluate.results import EpisodeResult
    from athena_vla.files.resume import Journal

    for name, successes in (("untuned", A), ("tuned", B)):
        journal = Journal(tmp_path / f"{name}.jsonl", {"athena_vla": "0", "actor": name, "setup": {"split": "test"}})
        for i, success in enumerate(successes):
            row = EpisodeResult(
                name, i, "point", "point", success, 1.5, 9, 0, {}, {}, 0, 0.1, 0.1, (), {"per_act": 0.1}
            )
            journal.add(row.to_dict())
        journal.close()
    result = compare_results([tmp_path / "untuned.jsonl", tmp_path / "tuned.jsonl"])
    assert [r.policy for r in result.rows] == ["untuned", "tuned"]
    assert [r.violations for r in result.rows] == [0, 0]
    assert not any("not read" in n for n in result.notes)
