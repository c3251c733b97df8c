"""The verb that chooses who is held out: by age, by groups with labels, or as somebody else chose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroage.cli.options import COHORT, SPLIT, AsJson, Exclude, Overwrite, load_cohort, next_train
from neuroage.errors import UsageError

if TYPE_CHECKING:
    from neuroage.cohort import Cohort, Split

MOST_LABELS = 20  # shown by set; the report beside the split has all


def split(
    cohort_file: Annotated[
        Path, typer.Argument(metavar="[COHORT]", help="Cohort table or folder; ages alone need no images.")
    ] = COHORT,
    uniform_age: Annotated[
        bool,
        typer.Option("--uniform-age", help="Validation ages as uniform as the cohort allows (default without labels)."),
    ] = False,
    stratified_age: Annotated[
        bool, typer.Option("--stratified-age", help="The same age mix on both sides instead.")
    ] = False,
    grouped: Annotated[
        bool,
        typer.Option(
            "--grouped", help="Persons and like pictures on one side, every label in each set (default with labels)."
        ),
    ] = False,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="Take over a split made elsewhere: subject or scan, and its set.")
    ] = None,
    n_validation: Annotated[
        int | None, typer.Option(min=1, help="By age: subjects in each validation set.  (default: 50)")
    ] = None,
    n_test: Annotated[
        int | None,
        typer.Option(min=0, help="By age: subjects in a test set beside it, chosen by the same rule.  (default: none)"),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Grouped: share of the images in each validation set.  (default: 0.15)"),
    ] = None,
    test: Annotated[
        float | None, typer.Option(min=0, max=1, help="Grouped: share of the images in the test set.  (default: 0.25)")
    ] = None,
    folds: Annotated[int, typer.Option(min=1, help="Disjoint validation sets, planned together.")] = 1,
    balance: Annotated[
        list[str] | None,
        typer.Option(help="By age: column whose mix the validation set shall share, such as sex. May be repeated."),
    ] = None,
    stratify: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Grouped: column dealt evenly to all sets.  May be repeated.  (default: the labels)"
        ),
    ] = None,
    official: Annotated[
        bool, typer.Option("--official", help="Grouped: the test set is that of the column official_set.")
    ] = False,
    no_duplicates: Annotated[
        bool, typer.Option("--no-duplicates", help="Grouped: do not look for equal and nearly equal pictures.")
    ] = False,
    age_range: Annotated[
        str | None, typer.Option(metavar="LOW:HIGH", help="By age: leave out subjects of other ages, years.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of people who must stay on one side, such as family_id.")
    ] = None,
    max_share_per_decade: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="By age: largest share of any decade that may be taken from training.  (default: 0.6)",
        ),
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="Only subjects with a scan of this modality; may be several, as t1,tof.")
    ] = None,
    exclude: Exclude = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws among the near-optimal sets.")] = 0,
    exact: Annotated[bool, typer.Option("--exact", help="By age: the optimum itself instead of a draw.")] = False,
    out_file: Annotated[Path, typer.Option("--out", help="Where the split is written, as CSV and JSON.")] = SPLIT,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Choose who is held out: 50 subjects of uniformly distributed ages; of labelled images, shares by group."""
    from neuroage.cli.screen import print_json, talk
    from neuroage.cohort import read_split

    if sum((uniform_age, stratified_age, grouped, from_file is not None)) > 1:
        raise UsageError("--uniform-age, --stratified-age, --grouped and --from exclude each other")
    if out_file.exists() and not overwrite:
        raise UsageError(
            f"{out_file} exists",
            fix="Runs may depend on it: choose another name with --out, or replace it with --overwrite.",
        )
    of_ages = {
        "n_validation": n_validation,
        "n_test": n_test,
        "balance": balance,
        "age_range": age_range,
        "max_share_per_decade": max_share_per_decade,
        "exact": exact or None,
    }
    of_groups = {
        "validation": validation,
        "test": test,
        "stratify": stratify,
        "official": official or None,
        "no_duplicates": no_duplicates or None,
    }
    cohort = _with_modalities(load_cohort(cohort_file, exclude), modality)
    if from_file is not None:
        _refuse_given({**of_ages, **of_groups}, "--from takes a split as it is")
        made = read_split(from_file, cohort)
    elif grouped or (not (uniform_age or stratified_age) and _has_labels(cohort)):
        if not grouped and cohort.table["age"].notna().any():
            talk.print("The cohort has labels and ages: it is split by group (--uniform-age splits it by age).")
        _refuse_given(of_ages, "this split is by group", fix="Split by age with --uniform-age, or leave it out.")
        made = _split_grouped(cohort, of_groups, folds=folds, group=group, seed=seed, quiet=as_json)
    else:
        _refuse_given(of_groups, "this split is by age", fix="Split by group with --grouped, or leave it out.")
        made = _split_by_age(cohort, of_ages, stratified=stratified_age, folds=folds, group=group, seed=seed)
    made.save(out_file)
    if as_json:
        print_json({"split": out_file, "digest": made.digest, **made.meta})
        return
    by_group = made.meta.get("method") == "grouped"
    (_tell_groups if by_group else _tell_ages)(made)
    labels = _has_labels(cohort) and (by_group or bool(cohort.table["age"].isna().all()))
    talk.print(f"Wrote {out_file} and {out_file.with_suffix('.json').name}.")
    talk.print(f"Next: `{next_train(cohort, cohort_file, out_file, labels=labels)}`.", markup=False)


def _has_labels(cohort: Cohort) -> bool:
    from neuroage.cohort.labels import has_labels

    return has_labels(cohort.table)


def _refuse_given(options: dict[str, Any], why: str, fix: str = "Leave it out.") -> None:
    given = [name for name, value in options.items() if value is not None and value != []]
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')}: {why}", fix=fix)


def _split_by_age(
    cohort: Cohort, options: dict[str, Any], *, stratified: bool, folds: int, group: str | None, seed: int
) -> Split:
    from neuroage.cohort import stratified_age_split, uniform_age_split

    common: dict[str, Any] = {
        "n_validation": 50 if options["n_validation"] is None else options["n_validation"],
        "n_test": options["n_test"] or 0,
        "folds": folds,
        "balance": options["balance"] or (),
        "age_range": _parse_range(options["age_range"]),
        "group": group,
        "seed": seed,
    }
    if stratified:
        return stratified_age_split(cohort, **common)
    most = 0.6 if options["max_share_per_decade"] is None else options["max_share_per_decade"]
    return uniform_age_split(cohort, max_share_per_decade=most, exact=bool(options["exact"]), **common)


def _split_grouped(
    cohort: Cohort, options: dict[str, Any], *, folds: int, group: str | None, seed: int, quiet: bool
) -> Split:
    from neuroage.cli.screen import Story
    from neuroage.cohort.leakage import DUPLICATE_COLUMN
    from neuroage.imaging.grouping import grouped_split

    shares = {name: options[name] for name in ("validation", "test") if options[name] is not None}
    if options["official"] and "test" in shares:
        raise UsageError("--test and --official: the official lists say who is tested", fix="Drop one of the two.")
    story, look = Story(quiet=quiet), not options["no_duplicates"] and DUPLICATE_COLUMN not in cohort.table.columns
    if look and (cohort.table["path"] != "").any():
        story.stage(f"Looking for equal and nearly equal pictures among {len(cohort)}")
    return grouped_split(
        cohort,
        "official" if options["official"] else None,
        duplicates=look,
        progress=story.preparing,
        folds=folds,
        stratify=options["stratify"] or None,
        groups=["subject_id", DUPLICATE_COLUMN, *([group] if group else [])],
        seed=seed,
        **shares,
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


def _tell_ages(made: Split) -> None:
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


def _tell_groups(made: Split) -> None:
    from rich.markup import escape

    from neuroage.cli.screen import make_table, out

    report: dict[str, Any] = made.meta["report"]
    sets = report["sets"]
    rows = [
        [row["set"], f"{row['images']:,}", f"{row['share']:.0%}", f"{row['n']:,}", f"{row['groups']:,}"] for row in sets
    ]
    out.print(make_table("", ["", "images", "share", "subjects", "groups"], rows))
    if found := report.get("duplicates"):
        out.print(
            f"Pairs of equal pictures: {found['exact_pairs']:,}; of nearly equal ones: {found['near_pairs']:,}; "
            f"groups of equal pictures with different labels: {found['conflicts']:,}."
        )
    names = [row["set"] for row in sets]
    labels = sorted(report["labels"], key=lambda row: -int(row["images"]))
    if labels:
        cells = [
            [escape(str(row["label"])), *(f"{row[name]:,}" for name in names), f"{row['groups']:,}"]
            for row in labels[:MOST_LABELS]
        ]
        out.print(make_table("Images of each label", ["", *names, "groups"], cells))
    if len(labels) > MOST_LABELS:
        out.print(f"… and {len(labels) - MOST_LABELS} rarer ones, in the report beside the split")
    for line in report.get("advice", []):
        out.print(f"• {line}", markup=False)
