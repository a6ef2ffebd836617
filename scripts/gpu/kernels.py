"""The attention kernels on this device: are they right (part a), and how fast are they (part b)?

    python scripts/gpu/kernels.py --out DIR [--seconds 120] [--quick] [--device cpu]

Writes `DIR/kernels-correctness.json` and `DIR/kernels-times.json`, each again after every result, so that a run that
is cut off leaves what it had. A case that fails leaves its error and the next goes on. On a CPU everything is tiny and
runs in Triton's interpreter or blockwise: a rehearsal. The exit status is 1 if a case of part a failed.

Kernels are compiled for each type, head dimension and gate family, which takes longer than running them. So the groups
of part a run beside each other, in processes of their own; part b then finds its kernels in Triton's cache.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="no new case of part a is begun after 65 %%, none of b after all"
    )
    parser.add_argument("--quick", action="store_true", help="the first cases only, smaller")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda where there is one")
    parser.add_argument("--group", help="one group of part a, in this process")
    parser.add_argument("--until", type=float, default=float("inf"), help="of the group: the clock's time to stop at")
    options = parser.parse_args()
    import torch

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.quick |= options.device == "cpu"
    if options.group:
        import kernel_cases

        kernel_cases.run_group(options.group, options.device, options.quick, options.out, options.until)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    failed = correctness(options, began + 0.65 * options.seconds)
    import kernel_times

    kernel_times.run(options.device, options.quick, options.out / "kernels-times.json", began + options.seconds)
    print(f"{time.time() - began:.0f} s; {failed} of part a failed")
    return int(failed > 0)


def correctness(options: argparse.Namespace, until: float) -> int:
    """Every group in a process; the number of cases that failed, with those of a process that died."""
    from kernel_cases import GROUPS, REHEARSED

    folder = options.out / "kernels-groups"
    folder.mkdir(exist_ok=True)
    environment = dict(os.environ)
    if options.device == "cpu":
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # One after the other without a GPU, where they would share few cores.
    together = len(GROUPS) if options.device == "cuda" else 1
    groups = list(GROUPS) if options.device == "cuda" else REHEARSED
    waiting, running, results = list(groups), {}, {}
    while waiting or running:
        while waiting and len(running) < together:
            name = waiting.pop(0)
            arguments = ["--out", folder, "--device", options.device, "--group", name, "--until", str(until)]
            with (folder / f"{name}.log").open("w") as log:
                running[name] = subprocess.Popen(
                    [sys.executable, __file__, *arguments, *(["--quick"] if options.quick else [])],
                    env=environment, stdout=log, stderr=subprocess.STDOUT,
                )  # fmt: skip
        time.sleep(0.2)
        for name, process in list(running.items()):
            late = time.time() > until + 20
            if process.poll() is None and not late:
                continue
            process.kill()
            process.wait()
            path = folder / f"{name}.json"
            rows = json.loads(path.read_text()) if path.is_file() else []
            if process.returncode != 0 or not rows:
                text = "took too long" if late else (folder / f"{name}.log").read_text()[-2000:]
                rows.append({"case": name, "error": text or f"exit status {process.returncode}", "passed": False})
            results[name] = rows
            del running[name]
            write(options.out / "kernels-correctness.json", {"groups": {key: results[key] for key in sorted(results)}})
    rows = [row for name in groups for row in results[name]]
    print("| case | passed | worst error / allowed | gates that differ / undecided / open | repeats |")
    print("|---|---|---|---|---|")
    for row in rows:
        if "left_out" in row:
            print(f"| {row['case']} | {row['left_out']} | | | |")
        elif "error" in row:
            print(f"| {row['case']} | no | {row['error'].strip().splitlines()[-1][:90]} | | |")
        elif "errors" not in row:
            print(f"| {row['case']} | {'yes' if row['passed'] else 'no'} | | | |")
        else:
            worst = max(row["errors"], key=lambda key: row["errors"][key] / row["allowed"][key])
            gates = f"{row['gates_that_differ']} / {row['undecided']} / {row['open']}"
            print(
                f"| {row['case']} | {'yes' if row['passed'] else 'no'} "
                f"| {worst} {row['errors'][worst]:.1e} / {row['allowed'][worst]:.1e} | {gates} | {row['repeats']} |"
            )
    return sum(row["passed"] is False for row in rows)


def write(path: Path, content: Any) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    scratch.replace(path)


if __name__ == "__main__":
    sys.exit(main())
