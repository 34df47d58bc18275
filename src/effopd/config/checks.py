"""What a valid configuration may still get wrong: names that must exist, numbers that must fit each other."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from effopd.common.registry import is_added
from effopd.config.packages import package_problems
from effopd.config.schema import RUN_SECTIONS, below, listed, merged, run_settings, schema, section_defaults, unchosen
from effopd.config.task_checks import split_rows, task_problems
from effopd.config.value_checks import alike_problems, text_problems
from effopd.data.sharding import batches_of
from effopd.extrapolation.gate import BLIND
from effopd.extrapolation.schedule import EVERY_STEP, checkpoint_steps, trigger_steps
from effopd.specs.extrapolation import LINE_BY_MODULE
from effopd.tasks.arithmetic import CHARACTERS, EOS, PAD
from effopd.tasks.sources import is_local

# Lists of `dynamics` whose numbers name variants of weights.
NAMED_BY_NUMBERS = (
    ("equal_norm", "fractions"), ("reconstruction", "top"), ("reconstruction", "bottom"), ("norm_scaling", "betas"),
)  # fmt: skip
LOWEST_TEMPERATURE = 1e-6  # below, logits divided by it are not finite
RESERVED_RUN_NAMES = ("models", "tasks")  # folders of results/evaluation/ that are no run's


def problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What a schema cannot say: names that must exist, numbers that must fit each other. A line for each."""
    yield from text_problems(config)
    yield from task_problems(config["task"], "task")
    for name, other in config["evaluation"]["tasks"].items():
        if name == config["task"]["name"]:
            yield f"`evaluation.tasks.{name}`: results/data/{name} is the data that is trained on. Choose another name."
        yield from task_problems(other["task"], f"evaluation.tasks.{name}.task")
    yield from _model_problems(config)
    for run in config["runs"]:
        if run in RESERVED_RUN_NAMES:
            yield f"`runs.{run}`: the name is reserved. Choose another."
        yield from _run_problems(config, run, run_settings(config, run))
    for prediction in config["predictions"]:
        yield from _prediction_problems(config, prediction)
    for name, model in config["models"].items():
        if model["kind"] == "pretrain" and "corpus" not in config["task"]:
            yield (
                f"`models.{name}.kind` is 'pretrain', and the task {config['task']['name']!r} has no text to "
                "pretrain on. Only `arithmetic` has."
            )
    for role in ("baseline", "reference"):
        named = config["evaluation"].get(role)
        if named is not None and named not in config["runs"]:
            yield f"`evaluation.{role}` is {named!r}, which is no run. Name one of: {listed(list(config['runs']))}."
    if config["evaluation"].get("reference") == (baseline := config["evaluation"]["baseline"]):
        yield f"`evaluation.reference` is {baseline!r}, which is the baseline. Name another run, or leave it out."
    yield from _own_reference_problems(config)
    if 0 < (temperature := config["evaluation"]["temperature"]) < LOWEST_TEMPERATURE:
        yield f"`evaluation.temperature` is {temperature}; it must be 0 (greedy) or at least {LOWEST_TEMPERATURE}."
    yield from _engine_problems(config["evaluation"], "`evaluation.{}`".format)
    for name in config["runtime"]["endpoints"]:
        if name not in config["models"]:
            known = listed(list(config["models"]))
            yield f"`runtime.endpoints.{name}` is not named as a model of `models`. Name one of: {known}."
    for name in config["estimate"]["architectures"]:
        if name not in config["models"]:
            known = listed(list(config["models"]))
            yield f"`estimate.architectures.{name}` is not named as a model of `models`. Name one of: {known}."
    yield from _dynamics_problems(config)
    yield from _option_problems(config)


def _option_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Options of what is not chosen beside them; `training` and `extrapolation` may have them for some of the runs."""
    keys = schema()["properties"]
    places = {section: unchosen(config[section], keys[section]) for section in keys if section not in RUN_SECTIONS}
    for run, overrides in config["runs"].items():
        for section in (one for one in RUN_SECTIONS if one in overrides):
            paths = unchosen(merged(config[section], overrides[section]), keys[section])
            places[f"runs.{run}.{section}"] = [path for path in paths if below(overrides[section], path) is not None]
    for place, paths in places.items():
        for path in paths:
            yield f"`{'.'.join([place, *path])}` is of what is not chosen there. Choose `{path[-1]}`, or remove it."


def _own_reference_problems(config: Mapping[str, Any]) -> Iterator[str]:
    with_all = [config["evaluation"][role] for role in ("baseline", "reference") if role in config["evaluation"]]
    for run, settings in config["runs"].items():
        named = settings.get("reference")
        place = f"`runs.{run}.reference` is {named!r}"
        if named is not None and named not in config["runs"]:
            yield f"{place}, which is no run. Name one of: {listed(list(config['runs']))}."
        elif named == run:
            yield f"{place}, the run itself. Name another run, or leave it out."
        elif named in with_all:
            yield f"{place}, with which all runs are compared already. Name another run, or leave it out."


def _dynamics_problems(config: Mapping[str, Any]) -> Iterator[str]:
    for key, word in (("runs", "all"), ("seeds", "all"), ("models", "teachers")):
        chosen, known = config["dynamics"][key], list(config[key])
        for unknown in (name for name in chosen if chosen != word and name not in known):
            yield f"`dynamics.{key}` names {unknown!r}, which is none of {listed(known)}. Name one of them, or {word}."
    for section, key in NAMED_BY_NUMBERS:
        yield from alike_problems(f"`dynamics.{section}.{key}`", config["dynamics"][section][key])


def _model_problems(config: Mapping[str, Any]) -> Iterator[str]:
    models = config["models"]
    for name, model in models.items():
        if model["kind"] == "pretrained":
            yield from _pretrained_problems(f"models.{name}", model)
            continue
        yield from _precision_problems(model, f"`models.{name}.{{}}`".format)
        if model["kind"] == "pretrain":
            if model["batch_size"] < model["num_processes"]:
                processes = f"`models.{name}.num_processes` is {model['num_processes']}"
                yield f"{processes}, more than the sequences of a step. Lower it."
            if model["heads"] % model["kv_heads"]:
                yield (
                    f"`models.{name}.heads` is {model['heads']}, not a multiple of `kv_heads` ({model['kv_heads']}). "
                    "Change one of them."
                )
            continue
        if model["kind"] == "sft":
            yield from _fine_tuning_problems(config, name, f"`models.{name}.{{}}`".format)
        else:
            yield from _engine_problems(model, f"`models.{name}.{{}}`".format)
            yield from _reinforcement_problems(config["task"], model, f"`models.{name}.{{}}`".format)
        seen = [name]
        while (origin := models[seen[-1]].get("init")) is not None:
            if origin not in models:
                known = listed(list(models))
                yield f"`models.{seen[-1]}.init` is {origin!r}, which is no model. Name one of: {known}."
                return
            if origin in seen:
                yield f"`models.{name}.init` leads back to itself ({' -> '.join([*seen, origin])}). Break the circle."
                return
            if models[origin].get("trust_remote_code"):
                yield (
                    f"`models.{name}.init` is {origin!r}, whose code is its own: what is trained from it could not be "
                    "saved with it. Train it elsewhere, and name the folder."
                )
            seen.append(origin)


def _pretrained_problems(place: str, model: Mapping[str, Any]) -> Iterator[str]:
    revision = model.get("revision")
    if "package" in model:
        for key in ("path", "revision"):
            if key in model:
                yield f"`{place}.{key}` is {model[key]!r}, and `package` says where the model is from. Remove one."
        yield from package_problems(f"{place}.package", model["package"])
        return
    if "path" not in model:
        yield f"`{place}.path` is missing. Add it, or a `package`."
        return
    if is_local(model["path"]):
        if revision is not None:
            yield f"`{place}.revision`: a local folder has none. Remove it."
        return
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model["path"], re.ASCII):
        yield (
            f"`{place}.path` is {model['path']!r}, neither a model of the hub (`owner/name`) nor a local folder or "
            "file. Write one with ./ in front."
        )
    if revision is None:
        yield (
            f"`{place}.revision` is missing: the model {model['path']} of the hub can change. Add the commit, or write "
            "a local folder with ./ in front."
        )
    elif not re.fullmatch(r"[0-9a-f]{40}", revision):
        yield f"`{place}.revision` is {revision!r}, which can move. Write the commit, 40 hexadecimal digits."


def _precision_problems(training: Mapping[str, Any], key: Callable[[str], str]) -> Iterator[str]:
    """What a trained model's or a run's keys on precision and ZeRO get wrong; `key` names a key in full."""
    if training["zero_stage"] == 0:
        for name, value in (("precision", "bfloat16"), ("offload_optimizer", True)):
            if training[name] == value:
                yield (
                    f"{key(name)} is {value!r}, which needs DeepSpeed's own float32 master weights. Set "
                    f"{key('zero_stage')} to 1 or more (on one rank, 1 costs nothing)."
                )


def _fine_tuning_problems(config: Mapping[str, Any], name: str, key: Callable[[str], str]) -> Iterator[str]:
    model, task = config["models"][name], config["task"]
    if model["batch_size"] < model["num_processes"]:
        yield f"{key('num_processes')} is {model['num_processes']}, more than the sequences of a step. Lower it."
    yield from _lora_problems(model, key)
    sampling = model.get("sampling")
    if model["data"] == "responses":
        if sampling is not None:
            yield f"{key('sampling')} is there, and {key('data')} is 'responses'. Write `data: samples`, or remove it."
        if not _has_responses(task):
            yield (
                f"{key('data')} is 'responses', and no source of `task.splits.train` has any. Name their column in its "
                "`columns.response`, or write `data: samples`."
            )
        return
    if sampling is None:
        yield f"{key('sampling')} is missing, and {key('data')} is 'samples'. Say whose: `sampling: {{from: <model>}}`."
        return
    yield from _engine_problems(sampling, lambda option: key(f"sampling.{option}"))
    if sampling["per_problem"] > sampling["samples"]:
        yield (
            f"{key('sampling.per_problem')} is {sampling['per_problem']}, more than the `samples` of a problem "
            f"({sampling['samples']}). Lower it, or raise `samples`."
        )
    where, available = split_rows(task, "train")
    if available is not None and sampling.get("problems", 0) > available:
        yield (
            f"{key('sampling.problems')} is {sampling['problems']}, more than the training split holds (`{where}`: "
            f"{available}). Lower it or enlarge the split."
        )
    if sampling["from"] not in config["models"]:
        known = listed(list(config["models"]))
        yield f"{key('sampling.from')} is {sampling['from']!r}, which is no model. Name one of: {known}."
    elif circle := _way_between(config["models"], sampling["from"], name):
        yield f"{key('sampling.from')} leads back to itself ({' -> '.join([name, *circle])}). Break the circle."


def _has_responses(task: Mapping[str, Any]) -> bool:
    """Whether a task's training split has worked responses, as far as the configuration knows."""
    if task["name"] == "arithmetic" or is_added("tasks", task["name"]):
        return True
    return any("response" in source["columns"] for source in task["splits"].get("train", {}).get("sources", ()))


def _way_between(models: Mapping[str, Any], start: str, end: str) -> list[str]:
    """Models from `start` to `end`, each made from the next one; empty if there is no such way."""
    ways = [[start]]
    seen = set()
    while ways:
        way = ways.pop()
        if way[-1] == end:
            return way
        section = models.get(way[-1], {})
        behind = (section.get("init"), section.get("sampling", {}).get("from"))
        ways += [[*way, model] for model in behind if model is not None and model not in seen]
        seen |= {*behind}
    return []


def _reinforcement_problems(
    task: Mapping[str, Any], model: Mapping[str, Any], key: Callable[[str], str]
) -> Iterator[str]:
    prompts, parts, ranks = model["prompts_per_step"], model["minibatches"], model["num_processes"]
    if prompts < ranks:
        yield f"{key('num_processes')} is {ranks}, more than the prompts of a step. Lower it."
    elif prompts < parts * ranks:
        yield (
            f"{key('minibatches')} is {parts}, and {prompts} prompts a step do not give each of {ranks} ranks one for "
            f"every minibatch. Lower it, or raise {key('prompts_per_step')} to {parts * ranks} or more."
        )
    if stopping := model.get("early_stopping"):
        if stopping["every"] > model["steps"]:
            yield (
                f"{key('early_stopping.every')} is {stopping['every']}, more than `steps` ({model['steps']}), so that "
                "nothing could be stopped. Lower it, or leave `early_stopping` out."
            )
        where, available = split_rows(task, "validation")
        if available is not None and stopping["problems"] > available:
            yield (
                f"{key('early_stopping.problems')} is {stopping['problems']}, more than the validation split holds "
                f"(`{where}`: {available}). Lower it or enlarge the split."
            )
    if model.get("overlong_buffer", 0) >= model["max_new_tokens"]:
        yield (
            f"{key('overlong_buffer')} is {model['overlong_buffer']}, not less than `max_new_tokens` "
            f"({model['max_new_tokens']}). Lower it; 0 turns it off."
        )


def _run_problems(config: Mapping[str, Any], run: str, settings: Mapping[str, Any]) -> Iterator[str]:
    training, extrapolation = settings["training"], settings["extrapolation"]
    overrides = config["runs"][run]

    def key(section: str, name: str) -> str:
        parts, own = name.split("."), overrides.get(section, {})
        default = below(config[section], parts) == below(section_defaults(section), parts)
        here = below(own, parts) is not None or (default and parts[0] in own)
        return f"`runs.{run}.{section}.{name}`" if here else f"`{section}.{name}`"

    for role in ("student", "teacher"):
        if training[role] not in config["models"]:
            yield (
                f"{key('training', role)} is {training[role]!r}, which is no model. "
                f"Name one of: {listed(list(config['models']))}."
            )
    yield from _engine_problems(training, partial(key, "training"))
    if training["scored_by"] == "endpoint" and training["objective"]["support"] == "full":
        yield (
            f"{key('training', 'scored_by')} is 'endpoint', and a server does not give the whole vocabulary. "
            "Write `support: top_k` in `training.objective`, or `scored_by: local`."
        )
    yield from _lora_problems(training, partial(key, "training"))
    yield from _precision_problems(training, lambda name: key("training", name))
    rollouts = training["prompts_per_step"] * training["samples_per_prompt"]
    where, available = split_rows(config["task"], "train")
    if available is not None and training["prompts_per_step"] > available:
        yield (
            f"{key('training', 'prompts_per_step')} is {training['prompts_per_step']}, more than the training split "
            f"holds (`{where}`: {available}). Lower it or enlarge the split."
        )
    if training["batch_size"] > rollouts:
        yield (
            f"{key('training', 'batch_size')} is {training['batch_size']}, more than the {rollouts} rollouts of "
            "a step. Lower it."
        )
    batches = batches_of(rollouts, training["batch_size"])
    counts = {key("training", "num_processes"): training["num_processes"]}
    if config["execution"]["mode"] == "staged":
        counts["`execution.shards`"] = config["execution"]["shards"]
    for name, count in counts.items():
        if count > batches:
            yield (
                f"{name} is {count}, more than the fixed batches ({batches}) of a step of run `{run}` "
                f"({rollouts} rollouts, `training.batch_size` {training['batch_size']}). Lower it, or the batch size."
            )
    yield from _objective_problems(training, partial(key, "training"))
    yield from _vocabulary_problems(config["task"]["name"], config["models"], training, partial(key, "training"))
    coefficients = extrapolation["coefficients"]
    if any(later <= earlier for earlier, later in itertools.pairwise(coefficients)):
        yield f"{key('extrapolation', 'coefficients')} is {coefficients}; it must increase. Sort it and drop repeats."
    yield from alike_problems(key("extrapolation", "coefficients"), coefficients)
    schedules = ("extrapolation", "triggers", trigger_steps), ("training", "checkpoint_steps", checkpoint_steps)
    for section, name, steps_of in schedules:
        try:
            steps_of(settings[section][name], training["steps"])
        except ValueError as error:
            yield f"{key(section, name)}: {error}"
    if extrapolation["triggers"] == EVERY_STEP:
        yield from _every_step_problems(extrapolation, partial(key, "extrapolation"))
    elif extrapolation["search"] == LINE_BY_MODULE and extrapolation["triggers"] != "none":
        yield (
            f"{key('extrapolation', 'search')} is {LINE_BY_MODULE!r}, which is for {key('extrapolation', 'triggers')} "
            f"`{EVERY_STEP}` alone. Write `search: line`, or those triggers."
        )
    own = overrides.get("extrapolation", {}).get("gate", {})
    yield from _gate_problems(
        config["task"], extrapolation["gate"], lambda name: key("extrapolation", f"gate.{name}"), own
    )


def _gate_problems(
    task: Mapping[str, Any], gate: Mapping[str, Any], key: Callable[[str], str], own: Mapping[str, Any]
) -> Iterator[str]:
    """What a gate's keys get wrong; `key` names one in full, `own` is what only this run or so writes."""
    if gate["source"] != "rollouts":
        yield from _difficulty_problems(task, gate, key("difficulty"))
        where, available = split_rows(task, gate["source"])
        if available is not None and gate["examples"] > available:
            yield (
                f"{key('examples')} is {gate['examples']}, more than its source holds (`{where}`: {available}). Lower "
                "it, or enlarge the source."
            )
    elif own.get("difficulty"):  # one for all gates is for those that draw problems
        yield (
            f"{key('difficulty')} is {gate['difficulty']}, and the source `rollouts` is what the step trained on. "
            "Leave it out, or choose another source."
        )
    elif gate["metric"] == "accuracy" or gate["samples"] > 1:
        name, value = ("metric", gate["metric"]) if gate["metric"] == "accuracy" else ("samples", gate["samples"])
        yield (
            f"{key(name)} is {value!r}, and with source `rollouts` candidates answer nothing: the step's own "
            f"rollouts are judged again. Set {'metric: reverse_kl' if name == 'metric' else 'samples: 1'}, or another "
            "source."
        )


def _difficulty_problems(task: Mapping[str, Any], gate: Mapping[str, Any], key: str) -> Iterator[str]:
    wanted = gate["difficulty"]
    low, high = wanted.get("min", -math.inf), wanted.get("max", math.inf)
    if low > high:
        yield f"{key} is {wanted}, which no problem can be. Swap `min` and `max`."
    if wanted and task["name"] == "arithmetic" and (low > task["max_terms"] or high < task["min_terms"]):
        yield (
            f"{key} is {wanted}, and sums have {task['min_terms']} to {task['max_terms']} terms (`task.min_terms`, "
            "`task.max_terms`). Ask for what there is."
        )
    if wanted and isinstance(task["splits"][gate["source"]], Mapping):
        split = gate["source"] if "sources" in task["splits"][gate["source"]] else "train"  # a share is of train's
        if not any("difficulty" in source["columns"] for source in task["splits"][split]["sources"]):
            yield (
                f"{key} is {wanted}, and no source of `task.splits.{split}` says how hard its problems are. Name the "
                "column in its `columns.difficulty`."
            )


def _lora_problems(training: Mapping[str, Any], key: Callable[[str], str]) -> Iterator[str]:
    if "lora" not in training:
        return
    for name, needed in (("precision", "float32"), ("zero_stage", 0), ("offload_optimizer", False)):
        if training[name] != needed:
            yield (
                f"{key(name)} is {training[name]!r}, and LoRA ({key('lora')}) trains whole float32 models, whose "
                f"optimizer is small. Write `{name}: {str(needed).lower()}`, or leave `lora` out."
            )


def _prediction_problems(config: Mapping[str, Any], name: str) -> Iterator[str]:
    prediction, place = config["predictions"][name], f"predictions.{name}"
    if name in config["runs"] or name in RESERVED_RUN_NAMES:
        yield f"`{place}`: the name is a run's or reserved, and tables tell both by name. Choose another."
    if prediction["run"] not in config["runs"]:
        known = listed(list(config["runs"]))
        yield f"`{place}.run` is {prediction['run']!r}, which is no run. Name one of: {known}."
    coefficients = prediction["coefficients"]
    if any(later <= earlier for earlier, later in itertools.pairwise(coefficients)):
        yield f"`{place}.coefficients` is {coefficients}; it must increase. Sort it and drop repeats."
    yield from alike_problems(f"`{place}.coefficients`", coefficients)
    yield from _gate_problems(config["task"], prediction["gate"], f"`{place}.gate.{{}}`".format, prediction["gate"])


def _every_step_problems(extrapolation: Mapping[str, Any], key: Callable[[str], str]) -> Iterator[str]:
    gate = extrapolation["gate"]
    if is_added("gates", gate["metric"]):
        yield (
            f"{key('gate.metric')} is {gate['metric']!r}, and with {key('triggers')} `{EVERY_STEP}` only the reverse "
            "KL and controls judge. Write `metric: reverse_kl`, or list the triggers."
        )
    if gate["source"] != "rollouts" and gate["metric"] not in BLIND:
        yield (
            f"{key('gate.source')} is {gate['source']!r}, and with {key('triggers')} `{EVERY_STEP}` nothing is "
            "generated for a gate. Write `source: rollouts` and `metric: reverse_kl`, or list the triggers."
        )
    if extrapolation["search"] == LINE_BY_MODULE and gate["metric"] in BLIND:
        yield (
            f"{key('search')} is {LINE_BY_MODULE!r}, and the gate {gate['metric']!r} does not look at modules. Write "
            "`search: line`, or `metric: reverse_kl`."
        )
    if extrapolation["anchor"] == "raw":
        yield (
            f"{key('anchor')} is 'raw', and with {key('triggers')} `{EVERY_STEP}` each update is measured from the "
            "weights that it started from. Leave `anchor` out."
        )


def _objective_problems(training: Mapping[str, Any], key: Callable[[str], str]) -> Iterator[str]:
    objective, horizon = training["objective"], training["horizon"]
    own_loss = is_added("objectives", objective["divergence"])
    if objective["support"] == "sampled" and objective["divergence"] != "reverse_kl" and not own_loss:
        yield (
            f"{key('objective.divergence')} is {objective['divergence']!r}, and sampled tokens estimate reverse_kl "
            "alone: it is the one that is a mean over the student's samples. Write `support: top_k` or `support: full`."
        )
    if objective["support"] != "sampled" and objective["reward_scale"] != 1:
        yield (
            f"{key('objective.reward_scale')} is {objective['reward_scale']:g}, and reward extrapolation is for "
            "sampled tokens. Write `support: sampled`, or leave `reward_scale` out."
        )
    if horizon.get("tokens", 0) > training["max_new_tokens"]:
        yield (
            f"{key('horizon.tokens')} is {horizon['tokens']}, more than `max_new_tokens` "
            f"({training['max_new_tokens']}). Lower it or leave it out."
        )
    if horizon["growth_steps"] and "tokens" not in horizon:
        yield (
            f"{key('horizon.growth_steps')} is {horizon['growth_steps']}, and `tokens` to grow from is missing. Add it."
        )


def _vocabulary_problems(
    task: str, models: Mapping[str, Any], training: Mapping[str, Any], key: Callable[[str], str]
) -> Iterator[str]:
    """More likeliest tokens than a model pretrained here has; of other models preflight knows the vocabulary."""
    objective, tokens = training["objective"], len({PAD, EOS, *CHARACTERS})
    if objective["support"] != "top_k" or objective["top_k"] < tokens or is_added("tasks", task):
        return
    for name in (training["student"], training["teacher"]):
        while "init" in models[name]:
            name = models[name]["init"]
        if models[name]["kind"] == "pretrain":
            yield (
                f"{key('objective.top_k')} is {objective['top_k']}, and `{name}` knows {tokens} tokens. Lower it to "
                f"{tokens - 1} or less, or write `support: full`."
            )
            return


def _engine_problems(section: Mapping[str, Any], key: Callable[[str], str]) -> Iterator[str]:
    if section["engine"] == "transformers" and section["engine_dtype"] != "float32":
        yield (
            f"{key('engine_dtype')} is {section['engine_dtype']!r}, and the transformers engine generates with the "
            "float32 weights that are trained. Write `engine: vllm`, or leave `engine_dtype` out."
        )
