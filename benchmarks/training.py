"""What training costs, and what the embedded model learns by it.

python benchmarks/training.py cost [--model tiny] [--task towers-topblock] [--rollouts 6] [--rounds 2]
python benchmarks/training.py learning --out DIR               # trains what is not there yet (hours), asks, reports
python benchmarks/training.py learning --out DIR --report      # from the runs that are there
python benchmarks/training.py learning --out DIR --only topblock-ppo-exploring-0
python benchmarks/training.py attempts --out DIR [--shown 6144] [--samples 3072 --method sft] [--shift visual:2] [-n 300]
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import App, Parameter
from PIL import Image, ImageDraw, ImageFont

from vlm_probe.analysis.style import MM, NAMES, PAGE_MM, STYLE, look, proportions, save
from vlm_probe.analysis.summary import Summary, summarise
from vlm_probe.finetune.config import make_config
from vlm_probe.finetune.data import training_set
from vlm_probe.finetune.train import train
from vlm_probe.probes.allocation import keep_freed_memory
from vlm_probe.probes.conditions import PLAIN, Presenter
from vlm_probe.probes.episodes import Episodes, Memory, TrialSpec
from vlm_probe.probes.readout import Scorer
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import read_trials
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.shifts import parse_shifts

app = App(
    help="What training costs, and what the embedded model learns by it.",
    default_parameter=Parameter(negative="", consume_multiple=True),
)
SKIPPED = 1
"""Rollouts at the beginning that are not counted: what is done once is done in them."""


def measure(method: str, model: str, task: str, rollouts: int) -> dict[str, float]:
    """Train in this process; CPU seconds per rollout, the simulator's part of them, and the peak of memory (GB)."""

    given: dict[str, Any] = {
        "model": model,
        "tasks": (task,),
        "method": method,
        "items": 256,
        "rollout": 128,
        "batch": 32,
        "epochs": 2,
        "beta": 0.01,
        "entropy_bonus": 0.0,
        "generations": 1 if method == "ppo" else 4,
        "budget": f"samples={128 * rollouts}",
        "save_every": 10**9,
    }
    clock: list[float] = []

    def tick(done: int, total: int) -> None:
        clock.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        # Made beforehand, so that the clock ticks for steps alone.
        config = make_config(given, "tiny")
        training_set(config)
        result = train(config, Path(folder) / "run", progress=tick)
    steps = result["budget"]["steps"] // rollouts
    ends = clock[-result["budget"]["steps"] :][steps - 1 :: steps]
    each = [after - before for before, after in itertools.pairwise(ends)][SKIPPED - 1 :]
    simulator = [row["simulator_s"] for row in result["curves"]][SKIPPED:]
    return {
        "rollout_s": statistics.median(each),
        "simulator_s": statistics.median(simulator),
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


@app.command
def cost(
    *,
    model: str = "tiny",
    task: str = "towers-topblock",
    rollouts: int = 6,
    rounds: int = 2,
    method: Annotated[str, Parameter(show=False)] = "",
) -> None:
    """What a rollout of PPO costs compared with one of GRPO, what share the simulator has in it, and how much memory training takes.

    Baseline: TRL's GRPO trainer on the same model, the same task, as many samples, and as many passes over them. Each method
    trains in a process of its own; the two take turns, so that a busy machine is busy for both.

    Prints, in CPU time: seconds per rollout, the ratio of PPO to GRPO (target <= 1.2), the share of the simulator and the reward in
    a rollout (target <= 0.25), and the peak of the memory that the process takes.

    Args:
        model: Short name or folder.
        task: That is learned.
        rollouts: Per training.
        rounds: Training runs per method.
        method: Train with this one in this process, and print JSON.
    """
    if method:
        print(json.dumps(measure(method, model, task, rollouts)))
        return
    found: dict[str, list[dict[str, float]]] = {"ppo": [], "grpo": []}
    for _ in range(rounds):
        for name, measured in found.items():
            command = [sys.executable, __file__, "cost", "--method", name, "--model", model, "--task", task]
            run = subprocess.run([*command, "--rollouts", str(rollouts)], capture_output=True, text=True, check=True)
            measured.append(json.loads(run.stdout.splitlines()[-1]))
    seconds = {m: statistics.median(r["rollout_s"] for r in each) for m, each in found.items()}
    for name, each in found.items():
        simulator = statistics.median(r["simulator_s"] / r["rollout_s"] for r in each)
        memory = max(r["memory_gb"] for r in each)
        print(
            f"{name:5} {seconds[name]:6.2f} CPU-s per rollout of 128, simulator and reward {simulator:.1%} of it,"
            f" {memory:.2f} GB"
        )
    print(f"PPO / GRPO {seconds['ppo'] / seconds['grpo']:.2f} (target <= 1.2)")


CRITERION = 0.6
WINDOW = 5
"""Rollouts whose mean success has to reach the criterion."""


@dataclass(frozen=True)
class Run:
    """One training run: its name, task, method and seed, and what differs from the preset."""

    name: str
    task: str
    method: str
    seed: int
    options: tuple[str, ...] = field(default=())


EXPLORING = (
    *("--temperature", "1.4", "--entropy-bonus", "0.05", "--beta", "0"),
    *("--value-learning-rate", "3e-3", "--value-clip", "0"),
)
"""Of PPO: replies that stay varied as long as those of the other methods, no pull to the base model, and a quicker critic."""
SAMPLES = ("--budget", "samples=8960")
"""What PPO sees in ten minutes of a processor without a reference model."""
ACTING = (
    *(Run(f"topblock-{m}-{seed}", "towers-topblock", m, seed) for m in ("grpo", "rloo") for seed in range(3)),
    *(Run(f"topblock-ppo-exploring-{s}", "towers-topblock", "ppo", s, (*EXPLORING, *SAMPLES)) for s in range(3)),
)
UNSURE = ("--entropy-bonus", "0.05")
VARIANTS = (
    Run("topblock-ppo-0", "towers-topblock", "ppo", 0),
    *(Run(f"topblock-ppo-unsure-{seed}", "towers-topblock", "ppo", seed, UNSURE) for seed in range(3)),
    Run(
        *("topblock-ppo-quick-1", "towers-topblock", "ppo", 1),
        (*UNSURE, "--beta", "0", "--value-learning-rate", "5e-3", "--value-clip", "0", *SAMPLES),
    ),
    Run("topblock-rloo-sure-1", "towers-topblock", "rloo", 1, ("--temperature", "1")),
    Run(
        *("topblock-rloo-more-1", "towers-topblock", "rloo", 1),
        ("--temperature", "1", "--entropy-bonus", "0.1", "--budget", "samples=9216"),
    ),
)
"""Other settings at the same task, in the table and not in the figure: the presets of the registered study, and what was changed."""
SHORT = ("--budget", "samples=4096")
"""Of the tasks on which a run is only to show that something is learned."""
SHORTER = ("--budget", "samples=2560", "--items", "1024")
MEDIUM = ("--budget", "samples=6144")
OTHERS = (
    Run("stability-sft-1", "towers-stability", "sft", 1),
    Run("stability-ppo-1", "towers-stability", "ppo", 1, SHORT),
    Run("place-ppo-0", "balance-place", "ppo", 0, SHORT),
    Run("aim-ppo-0", "collision-aim", "ppo", 0, SHORTER),
    Run("aim-ppo-exploring-0", "collision-aim", "ppo", 0, (*EXPLORING, *MEDIUM)),
    Run("brace-ppo-exploring-0", "support-brace", "ppo", 0, (*EXPLORING, *MEDIUM)),
)
TESTS = {
    "towers-topblock": (600, 101),
    "towers-stability": (600, 77),
    "balance-place": (200, 77),
    "collision-aim": (200, 77),
    "support-brace": (200, 77),
}
"""Task -> items and seed of its test set. The settings of acting were chosen with sets of the seed 77, so another one tells how good they are."""


def probe(*arguments: str) -> dict[str, Any]:
    """Run a command of `probe` with --json, and give what it prints."""
    command = [sys.executable, "-m", "vlm_probe", *arguments]
    run = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {run.returncode}")
    found: dict[str, Any] = json.loads(run.stdout) if run.stdout.startswith("{") else {}
    return found


def train_run(run: Run, folder: Path, model: str) -> None:
    """Train, unless that is done."""
    if not (folder / run.name / "training.json").is_file():
        given = ("--tasks", run.task, "--method", run.method, "--seed", str(run.seed), *run.options)
        where = ("--avoid", str(test_set(run.task, folder)), "--out", str(folder / run.name))
        probe("train", "--model", model, "--preset", "tiny", *given, *where, "--json")


def test_set(task: str, folder: Path) -> Path:
    """The test set of a task, made when it is first asked for."""
    n, seed = TESTS[task]
    path = folder / "sets" / f"{task}-{seed}"
    if not path.is_dir():
        probe("stimuli", "make", task, "-n", str(n), "--seed", str(seed), "--out", str(path))
    return path


def greedy(task: str, folder: Path, model: str, adapter: Path | None) -> dict[str, Any]:
    """The summary of the model's greedy replies to the test set."""
    name = adapter.name if adapter is not None else f"base-{task}"
    out = folder / "tests" / f"{name}-{TESTS[task][1]}"
    if not (out / "summary.json").is_file():
        given = ("--adapter", str(adapter)) if adapter is not None else ()
        where = ("--stimuli", str(test_set(task, folder)), "--out", str(out))
        probe("run", "--model", model, *where, *given, "--no-references", "--json")
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def finished(run: Run, folder: Path, model: str) -> dict[str, Any]:
    """What a finished run has cost and learned."""
    training = json.loads((folder / run.name / "training.json").read_text())
    after, before = greedy(run.task, folder, model, folder / run.name), greedy(run.task, folder, model, None)
    return {
        "name": run.name,
        "weights": training["base"]["weights_sha256"][:12],
        "task": run.task,
        "method": run.method,
        "seed": run.seed,
        "options": list(run.options),
        "samples": training["budget"]["samples"],
        "tokens": training["budget"]["tokens"],
        "steps": training["budget"]["steps"],
        "cpu_seconds": training["cpu_seconds"],
        "samples_to_criterion": samples_to(training["curves"]),
        "success": after["accuracy"],
        "interval": after["accuracy_ci"],
        "pairs": after["pair_accuracy"],
        "parse_rate": after["parse_rate"],
        "base": before["accuracy"],
        "constant": after["baselines"]["constant"]["score"],
        "shortcuts": after["baselines"]["shortcuts"],
        "n": after["n"],
        "data_sha256": training["data_sha256"],
        "adapter_sha256": training["adapter_sha256"],
        "curve": curve(training["curves"]),
    }


def so_far(run: Run, folder: Path) -> dict[str, Any] | None:
    """What is known of a run that was stopped: no test, and no more than its curve; None if it has not begun."""
    file = folder / run.name / "checkpoints" / "curves.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    if not rows:
        return None
    return {
        "name": run.name,
        "task": run.task,
        "method": run.method,
        "seed": run.seed,
        "options": list(run.options),
        "stopped_at": rows[-1]["samples"],
        "samples_to_criterion": samples_to(rows),
        "curve": curve(rows),
    }


def curve(rows: list[dict[str, Any]]) -> list[list[float]]:
    """(samples, sampled success, entropy) of every step that generated; no row for supervised steps."""
    return [[row["samples"], row["success"], row["entropy"]] for row in rows if "success" in row and "reward" in row]


def samples_to(rows: list[dict[str, Any]]) -> int | None:
    """Samples after which sampled success, as a mean over `WINDOW` rollouts, has reached the criterion."""
    successes = [row["success"] for row in rows if "success" in row]
    for i in range(WINDOW - 1, len(successes)):
        if sum(successes[i - WINDOW + 1 : i + 1]) / WINDOW >= CRITERION:
            return int(rows[i]["samples"])
    return None


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """Sampled success over samples: a panel for towers-topblock, one for other tasks; dashed: stopped."""
    import matplotlib.pyplot as plt

    apart = {run.name for run in VARIANTS}
    drawn = [run for run in found if run["curve"] and run["name"] not in apart]
    first = [run for run in drawn if run["task"] == "towers-topblock"]
    panels = {"towers-topblock": first, "PPO on other tasks": [run for run in drawn if run not in first]}
    panels = {title: runs for title, runs in panels.items() if runs}
    if not panels:
        return
    with plt.rc_context(STYLE):
        size = (PAGE_MM * MM * len(panels) / 2, 78 * MM)
        figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)
        for panel, (title, runs) in zip(axes[0], panels.items(), strict=True):
            colours: dict[str, Any] = {}
            for run in runs:
                label, colour, style = run["task"], None, "-"
                if title == run["task"]:
                    label, (colour, _) = NAMES[run["method"]], look(run["method"])
                if "stopped_at" in run:
                    label, style = f"{label}, stopped", "--"
                samples, success = [x for x, _, _ in run["curve"]], smoothed([y for _, y, _ in run["curve"]])
                shown, colour = None if label in colours else label, colours.get(label, colour)
                (line,) = panel.plot(samples, success, linestyle=style, color=colour, label=shown, linewidth=1)
                colours[label] = line.get_color()
                if "constant" in run:
                    grey = "#5A5A5A" if title == run["task"] else line.get_color()
                    panel.axhline(run["constant"], color=grey, linewidth=0.6, linestyle=":")
            panel.set_title(title)
            panel.set_xlabel("samples")
            panel.set_ylim(0, 1)
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
            proportions(panel)
        axes[0][0].set_ylabel("success of sampled replies")
        save(figure, file)
        plt.close(figure)


def smoothed(values: list[float]) -> list[float]:
    """Means over the last `WINDOW` values, fewer at the beginning."""
    windows = [values[max(0, i - WINDOW + 1) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def table(found: list[dict[str, Any]]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| Run | success, greedy [95 %] | base | best constant | samples | to .60 | CPU-s |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        reached = one["samples_to_criterion"]
        if "stopped_at" in one:
            lines.append(f"| {one['name']} | stopped, not tested |  |  | {one['stopped_at']} | {reached or ''} |  |")
            continue
        low, high = one["interval"]
        cells = (
            one["name"],
            f"{one['success']:.3f} [{low:.3f}, {high:.3f}]",
            f"{one['base']:.3f}",
            f"{one['constant']:.3f}",
            f"{one['samples']}",
            "" if not one["curve"] else "not reached" if reached is None else str(reached),
            f"{one['cpu_seconds']:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@app.command
def learning(*, out: Path, model: str = "tiny", only: tuple[str, ...] = (), report: bool = False) -> None:
    """What the embedded model learns by each method, on two CPU cores: the runs of docs/learning.md, made and measured.

    Every run is `probe train --preset tiny`, and every test `probe run` with greedy replies on a set of new items. Writes
    results.json and learning.png. The same command resumes where it was stopped; a run that was stopped and has not been resumed
    is reported as far as it came.

    Args:
        out: Folder for everything.
        model: Short name or folder.
        only: Names of runs; by default all.
        report: Train nothing: report the runs that are there.
    """
    runs = [run for run in (*ACTING, *VARIANTS, *OTHERS) if not only or run.name in only]
    if not report:
        for run in runs:
            train_run(run, out, model)
    done = {run.name for run in runs if (out / run.name / "training.json").is_file()}
    each = [finished(r, out, model) if r.name in done else so_far(r, out) for r in runs]
    found = [one for one in each if one is not None]
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, out / "learning.png")
    print(table(found))


TASK = "towers-topblock"
EDGE, TEXT = 224, 46
Method = Literal["sft", "grpo", "ppo"]
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "grpo": {"generations": 8, "batch": 64, "schedule": "constant", "learning_rate": 5e-4, "temperature": 1.0},
    "ppo": {"generations": 1, "batch": 32, "epochs": 2},
}


@dataclass(frozen=True)
class Asked:
    """How an adapter is asked: a name, the memory, and the temperature."""

    name: str
    memory: str
    temperature: float


WAYS = (Asked("memory", "all", 0.0), Asked("sampled", "all", 1.0), Asked("guesses", "none", 1.0))


def adapters(
    out: Path, method: Method, shown: int, samples: int, items: int, attempts: int, seed: int
) -> dict[str, Path]:
    """The adapter that was shown what to do, and the one that went on in the closed loop; trained, or found there."""
    given: dict[str, Any] = {"model": "tiny", "tasks": (TASK,), "seed": seed, "items": items}
    first_folder, tried = out / "shown", out / f"tried_{method}"
    loop = {"attempts": attempts, "memory": "all"}
    first = loop | {"method": "sft", "budget": f"samples={shown}"}
    further = loop | {"method": method, "budget": f"samples={samples}", "init": str(first_folder)}
    # Other items than before: the same ones again would teach what is right for them, and not how to correct.
    further |= {"rollout": 64, "seed": seed + 1} | METHODS[method]
    runs = {"sft": (first_folder, first)} | ({f"then {method}": (tried, further)} if samples else {})
    for folder, settings in runs.values():
        config = make_config(given | settings, "tiny")
        train(config, folder, progress=lambda done, n: print(f"\r{done}/{n}  ", end="", file=sys.stderr))
    return {name: folder for name, (folder, _) in runs.items()}


def asked(folder: Path, way: Asked, stimuli: StimulusSet) -> Path:
    """Where the replies of an adapter go that is asked a set in that way."""
    return folder.with_name(f"{folder.name}_{way.name}_{stimuli.path.name}")


def ask(folder: Path, way: Asked, stimuli: StimulusSet, attempts: int, model: Any) -> Summary:
    """What an adapter scores when it is asked in that way.

    Args:
        folder: Of the adapter.
        way: How it is asked.
        stimuli: What it is asked.
        attempts: At most how many.
        model: The model with the adapter attached.
    """
    out = asked(folder, way, stimuli)
    settings = {"temperature": way.temperature, "attempts": attempts, "memory": way.memory}
    run(RunConfig("tiny", str(stimuli.path), adapter=str(folder), **settings), stimuli, out, model=model)  # type: ignore[arg-type]
    return summarise(out)


def solved(folder: Path, attempts: int) -> dict[str, list[float]]:
    """Item -> whether it was solved within one attempt, within two, ..."""
    when: dict[str, int] = {}
    for row in read_trials(folder):
        when.setdefault(row["item_id"], attempts + 1)
        if row["success"]:
            when[row["item_id"]] = min(when[row["item_id"]], row["attempt"])
    return {item: [float(first <= k) for k in range(1, attempts + 1)] for item, first in when.items()}


def difference(one: dict[str, float], other: dict[str, float], stimuli: StimulusSet) -> str:
    """Mean difference over items, with its 95 % bootstrap interval over groups."""
    groups = sorted({item.group_id for item in stimuli.items})
    place = {item.item_id: groups.index(item.group_id) for item in stimuli.items}
    shared = sorted(one.keys() & other.keys())
    each = np.array([one[item] - other[item] for item in shared])
    where = np.array([place[item] for item in shared])
    sums, sizes = np.bincount(where, each, len(groups)), np.bincount(where, minlength=len(groups))
    drawn = np.random.default_rng(0).integers(len(groups), size=(4000, len(groups)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{each.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def differences(folder: Path, stimuli: StimulusSet, attempts: int) -> None:
    """Print what further attempts add to the first, and memory to independent guesses."""
    found = {way.name: solved(asked(folder, way, stimuli), attempts) for way in WAYS}

    def within(way: str, k: int) -> dict[str, float]:
        return {item: row[k - 1] for item, row in found[way].items()}

    first, last = within("memory", 1), within("memory", attempts)
    guesses = within("guesses", attempts)
    print(f"  within {attempts} less within 1, memory, greedy       {difference(last, first, stimuli)}")
    print(f"  memory, greedy, less {attempts} independent guesses   {difference(last, guesses, stimuli)}")
    sampled = within("sampled", attempts)
    print(f"  memory, sampled, less {attempts} independent guesses  {difference(sampled, guesses, stimuli)}")
    # Both have the same first attempts, which missed: what does the second one add, with what was seen and without?
    missed = [item for item, row in found["sampled"].items() if not row[0] and not found["guesses"][item][0]]
    seen, fresh = ({item: within(way, 2)[item] for item in missed} for way in ("sampled", "guesses"))
    print(
        f"  second attempt after {len(missed)} misses: {sum(seen.values()) / len(missed):.3f} with memory,"
        f" {sum(fresh.values()) / len(missed):.3f} as a new guess, {difference(seen, fresh, stimuli)}"
    )


def episode(folder: Path, stimuli: StimulusSet, attempts: int, file: Path) -> None:
    """Draw an episode that took all attempts and ended well: what was seen, what was said, and the outcome."""
    tries = range(1, attempts + 1)
    rows = {(row["item_id"], row["attempt"]): row for row in read_trials(folder)}
    # There is no image of what a reply that cannot be read did.
    read = [i for i in stimuli.items if all(rows.get((i.item_id, k), {}).get("status") == "ok" for k in tries)]
    solved = [item for item in read if rows[item.item_id, attempts]["success"]]
    if not solved:
        print("no episode took all attempts and ended well: no picture")
        return
    item = solved[0]
    scorer = Scorer()
    episodes = Episodes(scorer, lambda _: "", (), folder, True, EDGE)
    following: TrialSpec | None = TrialSpec(Presenter(stimuli), item, PLAIN, Memory(attempts, "all"))
    for attempt in range(1, attempts):
        assert following is not None
        following = episodes.following(following, rows[item.item_id, attempt])
    assert following is not None
    turns = following.trial(with_picture=True).turns
    pictures = [image for turn in turns for image in turn.images]
    last = scorer.attempt(item, rows[item.item_id, attempts], EDGE)
    assert last.picture is not None
    pictures.append(Image.fromarray(last.picture))
    replies = [f"attempt {k}: {rows[item.item_id, k]['answer_text']} cm" for k in tries]
    captions = ["the scene", *(f"{reply}\nit falls" for reply in replies[:-1]), f"{replies[-1]}\nit stands"]
    gap = 8
    sheet = Image.new("RGB", (len(pictures) * (EDGE + gap) - gap, EDGE + TEXT), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        sheet.paste(picture.resize((EDGE, EDGE)), (number * (EDGE + gap), 0))
        pen.multiline_text((number * (EDGE + gap) + 2, EDGE + 4), caption, fill="black", font=font)
    sheet.save(file)
    print(f"picture: {file}")


@app.command
def attempts(
    *,
    out: Path,
    method: Method = "sft",
    shown: int = 6144,
    samples: int = 0,
    items: int = 2048,
    attempts: int = 3,
    n: Annotated[int, Parameter("-n")] = 300,
    shift: str = "",
    test_seed: int = 77,
    seed: int = 0,
) -> None:
    """What a second and a third attempt add, after multi-attempt training: the numbers and the figure of docs/interaction.md.

    Shows `tiny` an expert who answers towers-topblock after attempts that failed (SFT), and may then show it more (`--samples`) of other
    items, or let it try for itself (`--method grpo` or `ppo`), with several attempts per scene and the memory of all of them. The
    adapters are asked new items: greedily with memory, sampled with memory, and with as many independent guesses (sampled, no memory):
    the last two have the same first attempts, so that they differ by what was seen. Prints a table, and the differences with
    bootstrap intervals over groups of items; draws an episode that took every attempt. What is there already is not done again.

    Args:
        out: Folder for everything.
        method: Of the second training.
        shown: Samples of the first training.
        samples: Of the second training; 0: none.
        items: Of each training run.
        attempts: Per scene.
        n: Items that are asked.
        shift: Of the items that are asked, such as visual:2.
        test_seed: Of the items that are asked.
        seed: Of the training runs.
    """
    keep_freed_memory()
    from vlm_probe.probes.models.loading import load_model

    out.mkdir(parents=True, exist_ok=True)
    place = out / ("new" if not shift else shift.replace(":", "-"))
    if not place.is_dir():
        make_set(TASK, n, test_seed, place, shifts=parse_shifts(shift))
    stimuli = StimulusSet.load(place)
    print(f"{TASK}, {len(stimuli)} new items, {attempts} attempts\n")
    headers = (*(f"within {k}" for k in range(1, attempts + 1)), f"{attempts} like the first", "same", "read")
    print(f"{'trained':20}{'asked with':12}" + "".join(f"{h:>18}" for h in headers))
    summary: Summary | None = None
    trained = adapters(out, method, shown, samples, items, attempts, seed)
    for name, folder in trained.items():
        model = load_model("tiny", adapter=folder)
        for way in WAYS:
            summary = ask(folder, way, stimuli, attempts, model)
            numbers = [cell.success.value for cell in summary.attempts]
            numbers += [1 - (1 - summary.accuracy.value) ** attempts, summary.attempts[1].same]
            numbers += [min(cell.parse_rate for cell in summary.attempts)]
            print(f"{name:20}{way.name:12}" + "".join(f"{number:18.3f}" for number in numbers), flush=True)
        differences(folder, stimuli, attempts)
    assert summary is not None
    guess = summary.guesses[-1]
    print(
        f"\n{attempts} random answers {guess['chance']:.3f}, best {attempts} constants {guess['constants']['score']:.3f}"
    )
    episode(asked(list(trained.values())[-1], WAYS[0], stimuli), stimuli, attempts, out / "interaction.png")


if __name__ == "__main__":
    app()
