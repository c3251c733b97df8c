"""How time and memory grow with the cohort: from a table of scans to a comparison of two models, tables only.

    python benchmarks/scale.py [--scans 1000 10000 100000] [--no-commands] [--json scale.json]

Each size runs in a process of its own, so that its peak memory is its own. The table names images that do not exist
here; such rows are kept without images, as `neuroage index` says, so no pixels are needed. One scan a subject; a tenth
of the subjects is drawn into the validation set; predictions are made up (a t1 and a tof network, the mean, ridge), and
every scan is evaluated and compared with all its resampled intervals and permutations. A growth of 1 means linear: ten
times the scans take ten times as long; below 1, less.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = [1_000, 10_000, 100_000]
LIMITS = {"seconds": 30.0, "peak_gib": 2.0}  # for the largest of SIZES


def write_table(path: Path, n_scans: int) -> None:
    """A table as found in the wild: a subject, an age, a path, and two columns to balance by."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    age = np.clip(rng.normal(48, 17, n_scans), 18, 95).round(1)
    names = [f"sub-{number:06d}" for number in range(n_scans)]
    table = {"participant_id": names, "age": age, "sex": rng.choice(["F", "M"], n_scans)}
    table["site"] = rng.choice(["north", "south", "west"], n_scans)
    table["path"] = [f"images/{name}_T1w.nii.gz" for name in names]
    pd.DataFrame(table).to_csv(path, index=False)


def made_up_predictions(cohort: Any, error_years: float, seed: int) -> Any:
    """Predictions of every scan with regression to the mean and noise, as networks make them."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(seed)
    age = cohort.table["age"].to_numpy(dtype=float)
    predicted = (
        age.mean() + 0.85 * (age - age.mean()) + rng.normal(0, error_years, len(age)) if error_years else age.mean()
    )
    keys = {
        "scan_id": cohort.table["scan_id"],
        "subject_id": cohort.table["subject_id"],
        "set": "validation",
        "fold": 0,
    }
    return pd.DataFrame({**keys, "member": "0", "age": age, "predicted_age": predicted})


def measure(n_scans: int, folder: Path) -> dict[str, Any]:
    """Time every stage at one size, in this process."""
    from neuroage.analysis import compare_models, evaluate, write_comparison, write_evaluation
    from neuroage.cohort import Cohort, Split, uniform_age_split
    from neuroage.runs.predictions import read_predictions, save_predictions

    seconds: dict[str, float] = {}

    def timed(stage: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        seconds[stage] = time.perf_counter() - start
        return result

    def index() -> Cohort:
        found = Cohort.read(folder / "found.csv")
        found.to_csv(folder / "cohort.csv")
        return Cohort.from_csv(folder / "cohort.csv")

    def split_and_save() -> Split:
        made = uniform_age_split(cohort, n_validation=n_scans // 10)
        made.save(folder / "split.csv")
        return Split.load(folder / "split.csv")

    def write_and_read() -> dict[str, Any]:
        for name, table in tables.items():
            save_predictions(table, folder / f"{name}.csv")
        return {name: read_predictions(folder / f"{name}.csv") for name in tables}

    write_table(folder / "found.csv", n_scans)
    cohort = timed("index", index)
    split = timed("split", split_and_save)
    timed("digest", lambda: (cohort.digest, split.digest))
    tables = {"t1": made_up_predictions(cohort, 5.0, 1), "tof": made_up_predictions(cohort, 6.5, 2)}
    tables |= {"mean": made_up_predictions(cohort, 0.0, 3), "ridge": made_up_predictions(cohort, 8.0, 4)}
    tables = timed("predictions", write_and_read)
    baselines = {name: tables[name] for name in ("mean", "ridge")}
    models = {name: tables[name] for name in ("t1", "tof")}
    evaluation = timed("evaluate", lambda: evaluate(tables["t1"], baselines, name="t1"))
    comparison = timed("compare", lambda: compare_models(models, baselines))
    timed("pages", lambda: (write_evaluation(evaluation, folder), write_comparison(comparison, folder)))
    assert len(cohort) == comparison.n_subjects == n_scans and comparison.models["t1"]["mae"] < 6
    pages = sum((folder / f"{name}.html").stat().st_size for name in ("evaluation", "comparison"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    result = {"n_scans": n_scans, "seconds": seconds, "total_seconds": sum(seconds.values())}
    return result | {"peak_gib": peak / 2**30, "pages_mib": pages / 2**20}


def in_own_process(n_scans: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", str(n_scans), "--folder", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure_commands(repeats: int) -> dict[str, dict[str, float]]:
    """Time whole processes, start of Python included: the help, and a split of 600 subjects."""
    limits = {"neuroage --help": 0.3, "neuroage split, 600 subjects": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "found.csv", 600)
        split = ["split", "found.csv", "--uniform-age", "--overwrite"]
        commands = dict(zip(limits, (["--help"], split), strict=True))
        result = {}
        for name, arguments in commands.items():
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "neuroage", *arguments], cwd=folder, check=True, capture_output=True
                )
                times.append(time.perf_counter() - start)
            times.sort()
            result[name] = {"median_seconds": times[repeats // 2], "best_seconds": times[0], "wanted": limits[name]}
    return result


def show(results: list[dict[str, Any]]) -> None:
    """Print seconds by stage and size, and how each grows from one size to the next (1: linear)."""
    from math import log

    sizes = [result["n_scans"] for result in results]
    print(f"{'scans':<14}" + "".join(f"{size:>12,}" for size in sizes) + "   growth (1: linear)")
    rows = {stage: [result["seconds"][stage] for result in results] for stage in results[0]["seconds"]}
    rows["all together"] = [result["total_seconds"] for result in results]
    for stage, values in rows.items():
        powers = [log(b / a) / log(n / m) for a, b, m, n in zip(values, values[1:], sizes, sizes[1:], strict=False)]
        print(
            f"{stage:<14}" + "".join(f"{v:>10.2f} s" for v in values) + "   " + "  ".join(f"{p:5.2f}" for p in powers)
        )
    print(f"{'peak memory':<14}" + "".join(f"{result['peak_gib']:>8.2f} GiB" for result in results))
    print(f"{'pages':<14}" + "".join(f"{result['pages_mib']:>8.2f} MiB" for result in results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, nargs="+", default=SIZES, help="sizes of the cohort")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of the whole commands")
    parser.add_argument("--no-commands", action="store_true", help="leave out the whole commands")
    parser.add_argument("--json", metavar="PATH", help="also write the figures here")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.folder)))
        return
    import numpy as np
    import pandas as pd

    from neuroage.files import write_json

    versions = {"python": platform.python_version(), "numpy": np.__version__, "pandas": pd.__version__}
    setting = {"machine": platform.processor() or platform.machine(), "versions": versions}
    print(json.dumps(setting))
    results = [in_own_process(size) for size in options.scans]
    show(results)
    largest = results[-1]
    for figure, value in (("seconds", largest["total_seconds"]), ("peak_gib", largest["peak_gib"])):
        print(f"{largest['n_scans']:,} scans: {value:.2f} {figure}, wanted at most {LIMITS[figure]:g} at {SIZES[-1]:,}")
    commands = {} if options.no_commands else measure_commands(options.repeats)
    for name, figures in commands.items():
        print(
            f"{name:<30} {figures['median_seconds']:.2f} s (best {figures['best_seconds']:.2f}), "
            f"wanted at most {figures['wanted']} s"
        )
    if options.json:
        write_json(options.json, {**setting, "limits": LIMITS, "results": results, "commands": commands})


if __name__ == "__main__":
    main()
