"""The task reasoning_gym: its data, its scorers behind walls, and what is said where something does not fit."""

import copy
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.common import registry
from effopd.common.errors import ConfigError, UserError
from effopd.config.schema import fill, schema
from effopd.config.task_checks import task_problems
from effopd.tasks import gym, gym_settings
from effopd.tasks.base import Problem, build_task
from effopd.tasks.gym import GymTask, answer_of
from effopd.tasks.gym_settings import gym_problems, shares_of
from effopd.tasks.gym_worker import decoded, encoded
from effopd.tasks.splits import content_hash
from effopd.workflow.job_specs import Plan

pytest.importorskip("reasoning_gym")
from reasoning_gym.factory import DATASETS

ROOT = Path(__file__).parents[2]
SHORT, LONG = {"min_terms": 2, "max_terms": 2}, {"min_terms": 5, "max_terms": 6}
MIXED = (
    {"name": "chain_sum", "weight": 2, "parameters": SHORT},
    {"name": "chain_sum", "label": "long sums", "parameters": LONG},
    {"name": "gcd", "weight": 0.5},
)
SPLITS = {"train": 21, "validation": 7, "test": 14}
WITHOUT_REFERENCE = {"boxnet", "rush_hour"}
REFUSED = {"game_of_life_halting"}  # its scorer takes any text for the right answer
NOT_MADE = {"composite"}  # mixes others, as `datasets` does
SAMPLED = ["arc_agi", "codeio", "graph_color", "gsm_symbolic", "n_queens", "prime_factorization", "simple_integration"]


def section(*datasets, **task):
    filled = {"task": {"name": "reasoning_gym", "datasets": list(datasets), **task}}
    section = fill(copy.deepcopy(filled), {"properties": {"task": schema()["properties"]["task"]}})["task"]
    return {**section, "splits": task["splits"]} if "splits" in task else section  # no default ones beside those


def tables_of(*datasets, **task):
    return build_task(section(*datasets, **task)).make_tables()[0]


def problems_of(table):
    return [Problem(row.problem, row.answer) for row in table.itertuples()]


@pytest.fixture(scope="module")
def task():
    """One whose workers all tests of this file share: they start in a second or two."""
    return GymTask({})


@pytest.fixture(scope="module")
def mixed():
    return tables_of(*MIXED, splits=SPLITS)


def one(task, name, count=2, **parameters):
    """A few problems of a data set."""
    made = GymTask(section({"name": name, "parameters": parameters}, splits={"test": count}))
    made._workers = task._workers
    return made, problems_of(made.make_tables()[0]["test"])


def test_splits_have_their_sizes_by_weight_and_no_problem_twice(mixed):
    assert {split: table["source"].value_counts().to_dict() for split, table in mixed.items()} == {
        "train": {"chain_sum": 12, "long sums": 6, "gcd": 3},
        "validation": {"chain_sum": 4, "long sums": 2, "gcd": 1},
        "test": {"chain_sum": 8, "long sums": 4, "gcd": 2},
    }
    hashes = pd.concat(list(mixed.values()))["problem"].map(content_hash)
    assert hashes.is_unique
    assert list(mixed["train"].columns) == ["problem", "answer", "difficulty", "source"]
    assert mixed["train"]["source"].tolist() != sorted(mixed["train"]["source"]), "sources are mixed"


def test_the_data_are_those_of_the_seed_whatever_the_process_and_the_number_of_workers(mixed, tmp_path):
    """Some data sets draw from the order of sets of text, which is that of the hash seed, or from global generators."""
    drifting = ["isomorphic_strings", "polynomial_multiplication", "list_functions", "pool_matrix"]
    datasets = [*MIXED, *({"name": name} for name in drifting)]
    script = (
        "import json, os, sys\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from effopd.tasks.base import build_task\n"
        "tables, _ = build_task(json.loads(sys.argv[1])).make_tables()\n"
        "print(json.dumps({split: table.to_json() for split, table in tables.items()}))"
    )
    text = json.dumps(section(*datasets, splits=SPLITS))
    found = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script, text]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        found.append(json.loads(done.stdout))
    here = tables_of(*datasets, splits=SPLITS)
    assert found[0] == found[1] == {split: table.to_json() for split, table in here.items()}


def test_a_problem_stays_when_later_splits_weights_labels_and_places_change(mixed):
    larger = tables_of(*MIXED, splits={**SPLITS, "train": 42})
    pd.testing.assert_frame_equal(larger["test"], mixed["test"])
    pd.testing.assert_frame_equal(larger["validation"], mixed["validation"])
    assert set(mixed["train"]["problem"]) < set(larger["train"]["problem"])
    other = tables_of({"name": "lcm"}, {**MIXED[0], "label": "pairs", "weight": 1}, splits={"test": 16})["test"]
    assert set(other[other["source"] == "pairs"]["problem"]) == set(
        mixed["test"][mixed["test"]["source"] == "chain_sum"]["problem"]
    )
    seeded = tables_of(*MIXED, splits=SPLITS, seed=1)
    assert not set(seeded["test"]["problem"]) & set(mixed["test"]["problem"])


def test_difficulty_is_a_number_that_the_data_set_calls_so():
    named = [{"name": name} for name in ("gsm_symbolic", "bitwise_arithmetic", "gcd", "syllogism", "quantum_lock")]
    table = tables_of(*named, splits={"test": 5})["test"].set_index("source")["difficulty"]
    assert table.dropna().to_dict() == {"gsm_symbolic": 1.0, "bitwise_arithmetic": 2.0, "quantum_lock": 6.0}


@given(st.integers(0, 10**7), st.lists(st.floats(1e-6, 1e6) | st.integers(1, 1000), min_size=1, max_size=8))
@settings(deadline=None)
def test_shares_are_whole_sum_to_the_total_and_are_less_than_one_off(total, weights):
    shares = shares_of(total, weights)
    assert sum(shares) == total
    exact = [total * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    assert all(abs(share - wanted) < 1 for share, wanted in zip(shares, exact, strict=True))
    rests = [(share > wanted, wanted % 1) for share, wanted in zip(shares, exact, strict=True) if wanted % 1]
    up, down = ([rest for is_up, rest in rests if is_up == way] for way in (True, False))
    assert not up or not down or min(up) >= max(down), "the largest remainders are those that are rounded up"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.fractions(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers() | st.just("!"), inner)
    | st.sets(st.integers() | st.text() | st.tuples(st.integers(), st.text())) | st.frozensets(st.text()),
)  # fmt: skip


def types_of(value):
    """A value's types, all the way down."""
    inner = value.items() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return type(value), [types_of(one) for one in inner]


@given(VALUES)
@settings(deadline=None)
def test_entries_are_the_same_after_a_round_trip_through_json(value):
    back = decoded(json.loads(json.dumps(encoded(value))))
    assert back == value
    assert types_of(back) == types_of(value)


def test_of_numpy_the_plain_values_are_kept_and_other_types_are_refused():
    assert encoded([np.float64(0.5), np.str_("a"), np.int64(3)]) == [0.5, "a", 3]
    with pytest.raises(TypeError, match="metadata of the type complex"):
        encoded({"z": 1j})


def check_dataset(task, name):
    """Right answers get all and wrong ones less, through the task; what cannot be checked is known."""
    if name in REFUSED:
        with pytest.raises(UserError, match="only 0 distinct ones .* left out: [0-9]+ whose scorer accepts any answer"):
            one(task, name)
        return
    made, problems = one(task, name)
    for problem in problems:
        right = made.right_completion(problem)
        assert (right is None) == (name in WITHOUT_REFERENCE)
        if right is not None:
            assert made.verify(problem, f"Let me think. {right}").reward == 1
    assert made.self_check(problems) == []
    partial = GymTask({"partial_credit": True})
    partial._workers = task._workers
    for problem in problems:
        assert 0 <= partial.verify(problem, made.wrong_completion(problem)).reward < 1


@pytest.mark.parametrize("name", SAMPLED)
def test_a_right_answer_scores_one_and_a_wrong_one_less(task, name):
    check_dataset(task, name)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DATASETS.keys() - NOT_MADE - set(SAMPLED)))
def test_every_data_set_of_the_package(task, name):
    check_dataset(task, name)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>5</answer>", "5"),
        ("<answer>\n1 2\n3 4 \n</answer> as said", "1 2\n3 4"),
        ("<answer>5</answer> no: <answer>6</answer>", "6"),
        (r"<answer>5</answer> or \boxed{6}", "5"),
        (r"\boxed{5}", "5"),
        (r"\boxed{5} then \boxed{{a}}", "{a}"),
        (r"<answer>\boxed{5}</answer>", "5"),
        (r"<answer>\boxed{5} and \boxed{6}</answer>", r"\boxed{5} and \boxed{6}"),
        ("I write <answer> tags: <answer>5</answer>", "5"),
        ("<answer>5</answer></answer>", "5"),
        ("<answer>5", None),
        (r"\boxed{4} <answer>5", "4"),
        ("5</answer>", None),
        ("</answer><answer>", None),
        ("the answer is 5", None),
        ("", None),
        ('<answer>{"a": "} <b> {"}</answer>', '{"a": "} <b> {"}'),
    ],
)
def test_which_answer_counts(completion, answer):
    assert answer_of(completion) == answer


@given(st.text() | st.lists(st.sampled_from(["<answer>", "</answer>", "\\boxed{", "{", "}", "5", " "])).map("".join))
@settings(deadline=None, max_examples=300)
def test_any_completion_has_an_answer_or_none(completion):
    answer = answer_of(completion)
    assert answer is None or (answer == answer.strip() and answer in completion)


ODD = [
    "x(",
    "[" * 500,
    "{}",
    "null",
    "nan",
    "-inf",
    "1e999",
    "\ud800",
    "\x00",
    "[1,[2]]",
    "9**9**9",
    "()",
    "lambda: 0",
    "×",
    "𝟗",
]


@pytest.mark.slow
@given(st.sampled_from(SAMPLED), st.text(min_size=1) | st.sampled_from(ODD))
@settings(deadline=None, max_examples=150)
def test_whatever_is_answered_gets_a_verdict(judged, name, answer):
    task, problems = judged
    verdict = task.verify(problems[name], f"<answer>{answer}</answer>")
    assert 0 <= verdict.reward <= 1
    assert verdict.reason


@pytest.fixture(scope="module")
def judged(task):
    partial = GymTask({"partial_credit": True})
    partial._workers = task._workers
    return partial, {name: one(task, name, 1)[1][0] for name in SAMPLED}


RUNS_CODE = ["string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "countdown", "puzzle24"]
RUNS_CODE += ["simple_integration", "polynomial_multiplication", "intermediate_integration"]


def test_no_part_of_an_answer_is_run(task, tmp_path):
    """Scorers hand answers to `eval` and to SymPy's parser."""
    mark = tmp_path / "mark"
    numbers = "+".join(f"chr({ord(letter)})" for letter in str(mark))
    answers = [f"__import__('os').mkdir('{mark}')", f"[open('{mark}','w')]", f"open({numbers}, chr(119))", "print(1)",
               "input()", "exit()", f"[x for x in ().__class__.__base__.__subclasses__()][0]({mark})"]  # fmt: skip
    for name in RUNS_CODE:
        made, (problem,) = one(task, name, 1)
        for answer in answers:
            assert made.verify(problem, f"<answer>{answer}</answer>").reward == 0, (name, answer)
        assert made.verify(problem, made.right_completion(problem)).reward == 1, name
    assert not mark.exists()


def test_what_a_scorer_asks_of_the_system_is_refused(tmp_path):
    """The second wall, for what a later version of the package may run."""
    script = (
        "import os, socket, subprocess, sys\nfrom effopd.tasks import gym_worker\n"
        "sys.addaudithook(gym_worker._refuse)\ngym_worker._own_texts.append(set())\n"
        "def refused(action):\n    try:\n        action()\n    except PermissionError as error:\n        return 'asked for' in str(error)\n"
        "print([refused(one) for one in (lambda: open('mark', 'w'), lambda: os.mkdir('mark'), lambda: os.system('true'),\n"
        "    lambda: subprocess.Popen(['true']), lambda: socket.socket(), lambda: os.kill(os.getpid(), 0))],\n"
        "    len(open('/proc/self/status').read()) > 0, len(os.listdir('/')) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split("] ") == [str([True] * 6)[:-1], "True True\n"]
    assert not list(tmp_path.iterdir())


def test_the_package_runs_text_nowhere_but_where_it_was_looked_at():
    """An `exec` in a scorer would get past the first wall: look at it, then name it here."""
    folder = Path(sys.modules["reasoning_gym"].__file__).parent
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if "exec(" in path.read_text()}
    assert found == {"code/codeio.py"}  # its own programs, when problems are made


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["9**9**9**9", "factorial(factorial(9999))"])
def test_a_scorer_that_takes_for_ever_is_given_up_and_the_next_answer_is_judged(task, monkeypatch, answer):
    monkeypatch.setattr(gym, "SECONDS", 2.0)
    made, (problem,) = one(task, "countdown", 1)
    verdict = made.verify(problem, f"<answer>{answer}</answer>")
    assert verdict.reward == 0
    assert "within 2 s" in verdict.reason or "scorer" in verdict.reason
    assert made.verify(problem, made.right_completion(problem)).reward == 1


def test_reasons(task):
    made, (problem,) = one(task, "prime_factorization", 1)
    reasons = [
        made.verify(problem, text).reason for text in ("5", "<answer>x</answer>", made.right_completion(problem))
    ]
    assert reasons == [
        "no answer: nothing stands in <answer></answer> or is boxed",
        "the scorer cannot read the answer (ValueError)",
        "right",
    ]


def test_partial_credit_is_given_where_it_is_asked_for(task):
    made, (problem,) = one(task, "gcd", 1)
    right = json.loads(problem.answer)["reference"]
    padded = f"<answer>{right} is the number</answer>"
    partial = GymTask({"partial_credit": True})
    assert made.verify(problem, padded).reward == 0
    assert 0 < partial.verify(problem, padded).reward < 1
    assert made.verify(problem, padded).reason.startswith("the scorer gives 0.")


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ([{"name": "chain_sun"}], "`task.datasets.0.name` is 'chain_sun', which reasoning-gym does not have. Did you mean `chain_sum`"),
        ([{"name": "composite"}], "`task.datasets.0.name` is 'composite', which mixes others. List those in `task.datasets`, with weights."),
        ([{"name": "gcd", "parameters": {"min_nunbers": 3}}], "`task.datasets.0.parameters.min_nunbers` is 3, and gcd has no such parameter. Did you mean `min_numbers`"),
        ([{"name": "gcd", "parameters": {"seed": 3}}], "`task.datasets.0.parameters.seed`: `task.seed` seeds all of them. Leave it out."),
        ([{"name": "gcd", "parameters": {"size": 3}}], "`task.datasets.0.parameters.size`: `task.splits` says how many problems there are. Leave it out."),
        ([{"name": "gcd", "parameters": {"min_numbers": 0}}], "`task.datasets.0.parameters` is {'min_numbers': 0}, which gcd refuses (AssertionError: "),
        ([{"name": "gcd", "parameters": {"min_numbers": "two"}}], "`task.datasets.0.parameters` is {'min_numbers': 'two'}, which gcd refuses (TypeError: "),
        ([{"name": "gcd"}, {"name": "gcd"}], "`task.datasets.1` is called 'gcd' as `task.datasets.0` is. Give it a `label` of its own."),
        ([{"name": "gcd"}, {"name": "gcd", "label": "other"}], "`task.datasets.1` has the problems of `task.datasets.0`: name and parameters are the same."),
        ([{"name": "gcd"}, {"name": "lcm", "label": "all"}], "`task.datasets.1` has the label `all`, which tables give to all sources together."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_before_anything_runs(datasets, message):
    (found,) = task_problems(section(*datasets), "task")
    assert found.startswith(message)
    assert "\n" not in found


def test_what_is_right_is_not_refused_and_other_tasks_are_named():
    assert list(gym_problems(section(*MIXED), "task")) == []
    key = "evaluation.tasks.gym.task"
    (found,) = gym_problems(section({"name": "gdc"}), key)
    assert found.startswith(f"`{key}.datasets.0.name` is 'gdc'")


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ([{"name": "coin_flip"}, {"name": "gcd"}],
         r"coin_flip \(`task.datasets.0`\): the test split asks for 500 problems, and there are only [0-9]+ distinct ones that no other split has. Lower `task.splits.test` or `task.datasets.0.weight`"),
        ([{"name": "word_ladder", "parameters": {"min_word_length": 3, "max_word_length": 3, "min_chain_length": 60, "max_chain_length": 60}}],
         r"word_ladder cannot make problems with `task.datasets.0.parameters` \(.*\). Change them."),
    ],
)  # fmt: skip
def test_a_data_set_with_too_few_problems_is_named_with_how_many_it_has(datasets, message):
    with pytest.raises(UserError, match=message):
        tables_of(*datasets, splits={"test": 1000})


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    monkeypatch.setattr(gym_settings, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package reasoning-gym, .* pip install 'effopd\[reasoning_gym\]'"):
        build_task({"name": "reasoning_gym"})
    (found,) = gym_problems(section({"name": "gcd"}), "evaluation.tasks.gym.task")
    assert found.startswith("`evaluation.tasks.gym.task.name` is reasoning_gym, which needs the package reasoning-gym")


TINY_MODEL = {"kind": "pretrained", "path": "./model"}
CONFIG = {
    "models": {"student": TINY_MODEL, "teacher": TINY_MODEL},
    "training": {"student": "student", "teacher": "teacher", "steps": 1, "prompts_per_step": 2, "batch_size": 2, "micro_batch": 2},
    "extrapolation": {"triggers": "none"},
    "runs": {"opd": {}},
    "evaluation": {"baseline": "opd"},
    "dynamics": {"enabled": False},
    "seeds": [0],
}  # fmt: skip


def plan_of(**task):
    return Plan({**copy.deepcopy(CONFIG), "task": {"name": "reasoning_gym", "datasets": list(MIXED), **task}})


def specs(**task):
    plan = plan_of(**task)
    where = {
        "make_data": {},
        "tokenize_prompts": {"model": "student"},
        "evaluate": {"precision": "float32", "max_new_tokens": 5},
    }
    return {stage: plan.spec(stage, **wildcards) for stage, wildcards in where.items()}


def changed(before, after):
    return {stage for stage in before if before[stage] != after[stage]}


def test_what_a_change_makes_rerun(monkeypatch):
    before = specs()
    assert json.loads(before["make_data"])["task"]["versions"].keys() == {"reasoning-gym"}
    assert changed(before, specs(seed=1)) == {"make_data"}
    assert changed(before, specs(prompt={"max_tokens": 5})) == {"tokenize_prompts"}
    assert changed(before, specs(partial_credit=True)) == {"evaluate"}
    monkeypatch.setattr(registry.metadata, "version", lambda name: "0.1.26")
    assert changed(before, specs()) == {"make_data", "evaluate"}


def test_sources_are_told_apart_where_there_are_several():
    assert plan_of().several_sources
    assert not plan_of(datasets=[MIXED[0]]).several_sources


@pytest.mark.slow
def test_the_workflow_plans_the_task_and_makes_its_data(tmp_path):
    splits = {**SPLITS, "train": 64}  # a gate draws 50 of them
    config = {**CONFIG, "task": {"name": "reasoning_gym", "datasets": list(MIXED), "splits": splits}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    (tmp_path / "gym.yaml").write_text(yaml.safe_dump(config))
    snakemake = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile"), "--cores", "1",
                 "--directory", str(tmp_path), "--configfile", str(tmp_path / "gym.yaml")]  # fmt: skip
    planned = subprocess.run([*snakemake, "--dry-run"], capture_output=True, text=True, cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert {"make_data", "make_source_table"} <= set((planned.stdout + planned.stderr).split())
    spec = plan_of(splits=splits).spec("make_data")
    out = tmp_path / "data/manifest.json"
    command = [sys.executable, "-m", "effopd", "make-data", "--spec", spec, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" or "done: 64 train, 7 validation, 14 test rows" in done.stdout + done.stderr
    table = pd.read_parquet(out.with_name("train.parquet"))
    pd.testing.assert_frame_equal(table, tables_of(*MIXED, splits=splits)["train"], check_dtype=False)
    assert json.loads(out.read_text())["result"]["rows"] == splits


def test_the_first_wall_reads_literals_and_formulas_alone(tmp_path):
    """Without the second one, which the process of this test does not put up."""
    script = (
        "import sys\nimport reasoning_gym\nfrom effopd.tasks import gym_worker\ngym_worker._tame()\n"
        "gym_worker._own_texts.append(set())\n"
        "insertion = sys.modules['reasoning_gym.algorithmic.string_insertion']\n"
        "import sympy\n"
        "def refused(read, text):\n    try:\n        read(text)\n    except (ValueError, SyntaxError):\n        return True\n    return False\n"
        "print([refused(vars(insertion)['eval'], text) for text in ('[len(\"ab\")]', 'print(1)', '[1 for x in ()]')],\n"
        "    [refused(sympy.parse_expr, text) for text in ('().__class__', 'open(\"x\")', 'x.y', 'lambda: 1')],\n"
        "    vars(insertion)['eval']('[1, \"a\"]'), sympy.parse_expr('x**2 + sqrt(4)'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == f"{[True] * 3} {[True] * 4} [1, 'a'] x**2 + 2"


def test_what_data_sets_run_writes_nothing_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = GymTask(section({"name": "codeio"}, splits={"test": 96}))
    assert len(made.make_tables()[0]["test"]) == 96
    assert not list(tmp_path.iterdir())
