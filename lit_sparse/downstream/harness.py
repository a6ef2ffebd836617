"""Runs lm-evaluation-harness (extra `eval`) on models that are already loaded."""

import difflib
import importlib.util
import io
import logging
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sparse.downstream.scores import TaskScore
from lit_sparse.records.evaluation import Estimate

_FOLDER = Path(__file__).parent / "tasks"
SHIPPED = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
"""Tasks of this package, which need no network."""

_ACCURACIES = ("acc", "acc_norm", "acc_bytes")
_SEED, _OTHER_SEED = 0, 1234  # the harness's own, which give its published few-shot prompts


def require_harness() -> None:
    """Checks that the extra `eval` is installed.

    Raises:
        ValueError: the extra is not installed.
    """
    missing = [name for name in ("lm_eval", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--tasks needs lm-evaluation-harness ({' and '.join(missing)} is missing): pip install 'lit-sparse[eval]'"
        )


def load_tasks(names: Sequence[str]) -> Any:
    """Loads tasks with their data, as `lm_eval.evaluate` takes them.

    Args:
        names: names of shipped tasks or of the harness's own (tasks, groups or tags), or paths of YAML files. Data
            files that a YAML file names are searched in its folder, then in the working directory. Functions that it
            names (`!function`) run, so a YAML file is code.

    Raises:
        ValueError: the harness is not installed, there is no such task, or its data cannot be loaded.
    """
    require_harness()
    with _quiet():
        from lm_eval.tasks import TaskManager

        _seed()
        paths = {name: _yaml_path(name) for name in dict.fromkeys(names)}
        foreign = [name for name, path in paths.items() if path is None]
        manager = TaskManager(include_defaults=bool(foreign))
        _check_names(foreign, manager.all_tasks)
        built: list[Any] = []
        for name, path in paths.items():
            loaded = _load(manager, name) if path is None else _load_file(manager, path)
            # The outermost group comes first and contains its tasks; a tag is several tasks.
            built += list(loaded["groups"].values())[:1] or loaded["tasks"].values()
        return manager.load(built)


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Any,
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> list[TaskScore]:
    """Scores of a model on the tasks of `load_tasks`. The harness's progress bars go to the terminal.

    Args:
        limit: number of questions of each task, its first ones; None takes all.
    """
    with _quiet():
        from lm_eval import evaluate

        _seed()
        for task in tasks["tasks"].values():  # both as the harness's own command line does it
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_OTHER_SEED)
        wrapped = _wrap(model, tokenizer, batch_size)
        # The bars for building prompts and for bootstrap samples name neither their work nor the model.
        with redirect_stderr(io.StringIO()):
            results = evaluate(lm=wrapped, task_dict=tasks, limit=limit, log_samples=True)
    return list(_scores(results))


def _wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    terminal = sys.stderr

    class Visible(HFLM):
        """Shows the progress of requests, while the rest of the harness is silent."""

        def loglikelihood(self, *args: Any, **kwargs: Any) -> Any:
            with redirect_stderr(terminal):
                return super().loglikelihood(*args, **kwargs)

        def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> Any:
            with redirect_stderr(terminal):
                return super().loglikelihood_rolling(*args, **kwargs)

        def generate_until(self, *args: Any, **kwargs: Any) -> Any:
            with redirect_stderr(terminal):
                return super().generate_until(*args, **kwargs)

    return Visible(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def _yaml_path(name: str) -> Path | None:
    """The file of a shipped task or of a path; None for a task of the harness."""
    if name in SHIPPED:
        return _FOLDER / f"{name}.yaml"
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        return None
    if not path.is_file():
        raise ValueError(f"no task file at {name}")
    return path.resolve()


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, [*SHIPPED, *known], n=3))
            raise ValueError(
                f"no task {name!r}{f' (similar: {close})' if close else ''}; --tasks takes {', '.join(SHIPPED)}, names "
                "of the harness's own tasks, or paths of .yaml files"
            )


def _load_file(manager: Any, path: Path) -> Any:
    try:
        with chdir(path.parent):
            return _load(manager, str(path))
    except ValueError as beside:
        try:
            return _load(manager, str(path))
        except ValueError:
            raise beside from None


def _load(manager: Any, name: str) -> Any:
    try:
        return manager.load([name])
    except Exception as error:  # of the harness, datasets, the hub, YAML and Jinja
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        hint = (
            ""
            if name.endswith((".yaml", ".yml"))
            else (
                "; the harness's own tasks fetch their data from the Hugging Face Hub, once. Without a network use "
                f"{' and '.join(SHIPPED)}, or tasks on local files"
            )
        )
        raise ValueError(f"cannot load the task {name}: {reason}{hint}") from error


def _scores(results: Mapping[str, Any]) -> Iterator[TaskScore]:
    samples = results.get("samples", {})
    for task, metrics in results["results"].items():
        answered = sorted(samples.get(task, ()), key=lambda sample: sample["doc_id"])
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{chosen}")
            mine = [sample for sample in answered if sample["filter"] == chosen]
            yield TaskScore(
                task=task,
                metric=metric if chosen == "none" else f"{metric} ({chosen})",
                score=Estimate(float(value), float(stderr) if isinstance(stderr, int | float) else None),
                questions=len(mine) or None,
                chance=_chance(results["configs"].get(task, {}), metric, mine),
                higher_is_better=results["higher_is_better"].get(task, {}).get(metric),
                by_question=_by_question(mine, metric, float(value)),
            )


def _by_question(samples: Sequence[Mapping[str, Any]], metric: str, value: float) -> tuple[float, ...] | None:
    found = [sample.get(metric) for sample in samples]
    if not found or not all(isinstance(answer, int | float | np.number) for answer in found):
        return None
    answers = tuple(float(answer) for answer in found)  # type: ignore[arg-type]
    return answers if np.isclose(np.mean(answers), value) else None


def _chance(config: Mapping[str, Any], metric: str, samples: Sequence[Mapping[str, Any]]) -> float | None:
    metrics = [entry.get("metric") for entry in config.get("metric_list") or ()]
    if config.get("output_type") != "multiple_choice" or metric not in _ACCURACIES or not samples:
        return None
    if "acc_mutual_info" in metrics:  # asks each choice twice
        return None
    return float(np.mean([1 / len(sample["arguments"]) for sample in samples]))


def _seed() -> None:
    random.seed(_SEED)
    np.random.seed(_OTHER_SEED)
    torch.manual_seed(_OTHER_SEED)


class _Once(logging.Filter):
    """Passes one record of each line of code, and no record about how the library is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, int]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        place = (record.pathname, record.lineno)
        if place in self.seen or "`pretrained`" in str(record.msg):
            return False
        self.seen.add(place)
        return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without datasets' progress bars and without the harness's remarks on its call and its tasks."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    once, speaker = _Once(), logging.getLogger("lm_eval.models.huggingface")
    quiet = {logging.getLogger(name): logging.ERROR for name in ("lm_eval.api", "lm_eval.tasks")}
    before = {logger: logger.level for logger in quiet}
    datasets.disable_progress_bars()
    speaker.addFilter(once)
    for logger, level in quiet.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        speaker.removeFilter(once)
        for logger, level in before.items():
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()
