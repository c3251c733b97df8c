"""Verbs about who: index, split, phantom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroage.cli.options import COHORT, SPLIT, AsJson, Overwrite, load_cohort
from neuroage.errors import UsageError

if TYPE_CHECKING:
    from neuroage.cohort import Cohort, Split


def index(
    source: Annotated[Path, typer.Argument(help="Folder of scans, or a table.")],
    out_file: Annotated[Path, typer.Option("--out", help="Where the cohort table is written.")] = COHORT,
    layout: Annotated[
        str, typer.Option(help="How the data lie (`neuroage list layouts`); auto recognises it.")
    ] = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find scans and ages, and write them as one table: who, when, which modality, where."""
    from neuroage.cli.screen import age_histogram, out, print_json, talk
    from neuroage.cohort import Cohort

    if not source.exists():
        raise UsageError(f"No such folder or table: {source}")
    cohort = Cohort.read(source, layout=layout)
    if out_file.exists() and not overwrite and not _holds(out_file, cohort):
        raise UsageError(
            f"{out_file} exists and holds other scans",
            fix="Choose another name with --out, or replace it with --overwrite.",
        )
    cohort.to_csv(out_file)
    subjects = cohort.subjects()
    ages = subjects["age"].dropna()
    modalities = {modality or "no images": int(n) for modality, n in cohort.table["modality"].value_counts().items()}
    if as_json:
        print_json(
            {
                "cohort": out_file,
                "n_scans": len(cohort),
                "n_subjects": len(subjects),
                "n_subjects_with_age": len(ages),
                "modalities": modalities,
                "age_years": {"min": ages.min(), "mean": ages.mean(), "max": ages.max()},
                "digest": cohort.digest,
                "problems": [str(problem) for problem in cohort.problems],
            }
        )
        return
    out.print(
        f"[bold]{len(subjects)} subjects, {len(cohort)} scans[/] "
        f"({', '.join(f'{n} {name}' for name, n in modalities.items())})"
    )
    if len(ages):
        out.print(
            f"Ages {ages.min():.1f} to {ages.max():.1f} years, mean {ages.mean():.1f}; "
            f"{len(subjects) - len(ages)} subjects without age"
        )
        out.print(age_histogram(ages.tolist()))
    for problem in cohort.problems[:20]:
        talk.print(f"[yellow]•[/] {problem}", markup=True)
    if len(cohort.problems) > 20:
        talk.print(f"  … and {len(cohort.problems) - 20} more (--json lists all)")
    talk.print(f"Wrote {out_file}. Next: `neuroage split --uniform-age`.")


def _holds(path: Path, cohort: Cohort) -> bool:
    from neuroage.cohort import Cohort
    from neuroage.errors import NeuroageError

    try:
        return Cohort.from_csv(path).digest == cohort.digest
    except NeuroageError:
        return False


def split(
    cohort_file: Annotated[
        Path, typer.Argument(metavar="[COHORT]", help="Cohort table or folder; images are not needed.")
    ] = COHORT,
    uniform_age: Annotated[
        bool, typer.Option("--uniform-age", help="Validation ages as uniform as the cohort allows (the default).")
    ] = False,
    stratified_age: Annotated[
        bool, typer.Option("--stratified-age", help="The same age mix on both sides instead.")
    ] = False,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="Take over a split made elsewhere: subject or scan, and its set.")
    ] = None,
    n_validation: Annotated[int, typer.Option(min=1, help="Subjects in each validation set.")] = 50,
    n_test: Annotated[int, typer.Option(min=0, help="Subjects in a test set beside it, chosen by the same rule.")] = 0,
    folds: Annotated[int, typer.Option(min=1, help="Disjoint validation sets, planned together.")] = 1,
    balance: Annotated[
        list[str] | None,
        typer.Option(help="Column whose mix the validation set shall share, such as sex. May be repeated."),
    ] = None,
    age_range: Annotated[
        str | None, typer.Option(metavar="LOW:HIGH", help="Leave out subjects of other ages, years.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of people who must stay on one side, such as family_id.")
    ] = None,
    max_share_per_decade: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Largest share of any decade that may be taken from training.")
    ] = 0.6,
    modality: Annotated[
        str | None, typer.Option(help="Only subjects with a scan of this modality; may be several, as t1,tof.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws among the near-optimal sets.")] = 0,
    exact: Annotated[bool, typer.Option("--exact", help="The optimum itself instead of a draw.")] = False,
    out_file: Annotated[Path, typer.Option("--out", help="Where the split is written, as CSV and JSON.")] = SPLIT,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Choose who is held out: by default 50 subjects whose ages are uniformly distributed."""
    from neuroage.cli.screen import print_json, talk
    from neuroage.cohort import read_split, stratified_age_split, uniform_age_split

    if sum((uniform_age, stratified_age, from_file is not None)) > 1:
        raise UsageError("--uniform-age, --stratified-age and --from exclude each other")
    if out_file.exists() and not overwrite:
        raise UsageError(
            f"{out_file} exists",
            fix="Runs may depend on it: choose another name with --out, or replace it with --overwrite.",
        )
    cohort = _with_modalities(load_cohort(cohort_file), modality)
    limits = _parse_range(age_range)
    if from_file is not None:
        made = read_split(from_file, cohort)
    elif stratified_age:
        made = stratified_age_split(
            cohort,
            n_validation=n_validation,
            n_test=n_test,
            folds=folds,
            balance=balance or (),
            age_range=limits,
            group=group,
            seed=seed,
        )
    else:
        made = uniform_age_split(
            cohort,
            n_validation=n_validation,
            n_test=n_test,
            folds=folds,
            balance=balance or (),
            age_range=limits,
            group=group,
            max_share_per_decade=max_share_per_decade,
            seed=seed,
            exact=exact,
        )
    made.save(out_file)
    if as_json:
        print_json({"split": out_file, "digest": made.digest, **made.meta})
        return
    _tell_split(made)
    talk.print(
        f"Wrote {out_file} and {out_file.with_suffix('.json').name}. "
        f"Next: `neuroage train --modality {next(iter(cohort.modalities), 't1')}`."
    )


def _with_modalities(cohort: Cohort, modality: str | None) -> Cohort:
    if modality is None:
        return cohort
    from neuroage.cohort.modalities import canonical_modality

    wanted = [canonical_modality(word) for word in modality.split(",")]
    having = [set(cohort.select(modality=name).table["subject_id"]) for name in wanted]
    return cohort.select(subject_ids=sorted(set.intersection(*having)))


def _parse_range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise UsageError(
            f"--age-range {text!r}", expected="two ages in years with a colon between, such as 20:80"
        ) from None
    return low, high


def _tell_split(made: Split) -> None:
    from neuroage.cli.screen import bar, make_table, out

    report: dict[str, Any] = made.meta.get("report", {})
    counts = made.table["set"].value_counts()
    out.print("[bold]" + ", ".join(f"{int(n)} {str(name).replace('_', ' ')}" for name, n in counts.items()) + "[/]")
    for row in report.get("sets", []):
        if "w1_years" in row:
            out.print(
                f"{row['set']}: {row['n']} subjects, W1 {row['w1_years']:.2f} years "
                f"from uniform (optimum {row['optimum_w1_years']:.2f}), "
                f"Kolmogorov–Smirnov {row['ks_distance']:.3f} (p = {row['ks_p']:.2f})"
            )
    if random := report.get("random_splits"):
        out.print(
            f"The best of {random['n_splits']:,} random splits would have reached W1 "
            f"{random['best_w1_years']:.2f} years (median {random['median_w1_years']:.2f})."
        )
    decades = report.get("decades", [])
    if decades:
        most = max(row["had"] for row in decades)
        rows = [
            [
                f"{row['decade']}–{row['decade'] + 9}",
                str(row["had"]),
                str(row["gave"]),
                str(row["kept"]),
                bar(row["gave"], most, 20),
            ]
            for row in decades
        ]
        out.print(make_table("", ["decade", "had", "gave", "kept", ""], rows))
    for line in report.get("advice", []):
        out.print(f"• {line}")


def phantom(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the BIDS data set.")] = Path("phantom"),
    n_subjects: Annotated[int, typer.Option("--n", min=1, help="Number of subjects.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same files.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a synthetic cohort: heads with T1 and angiography that age in documented ways."""
    import os

    from neuroage.cli.screen import Story, print_json, talk
    from neuroage.imaging.phantom import make_phantom

    story = Story(quiet=as_json)
    story.stage(f"Making {n_subjects} synthetic subjects in {out_folder}")
    facts = make_phantom(
        out_folder, n_subjects=n_subjects, seed=seed, processes=os.cpu_count(), progress=story.preparing
    )
    if as_json:
        print_json({"folder": out_folder, "noise_ceiling_years": facts["noise_ceiling_years"]})
        return
    ceilings = ", ".join(f"{modality} {years:.1f}" for modality, years in facts["noise_ceiling_years"].items())
    talk.print(f"No model can have a smaller mean absolute error than (years): {ceilings}.")
    talk.print(f"Next: `neuroage index {out_folder}`.")
