"""WHO: scans, cohorts, readers of public data sets, and splits. No torch, no pixels."""

from neuroage.cohort.cohort import Cohort
from neuroage.cohort.foreign_split import read_split
from neuroage.cohort.layouts import Layout, layouts
from neuroage.cohort.leakage import measure_leakage
from neuroage.cohort.problem import Problem
from neuroage.cohort.scan import Scan
from neuroage.cohort.split import Split
from neuroage.cohort.stratified import stratified_age_split
from neuroage.cohort.uniform import uniform_age_split

__all__ = [
    "Cohort",
    "Layout",
    "Problem",
    "Scan",
    "Split",
    "layouts",
    "measure_leakage",
    "read_split",
    "stratified_age_split",
    "uniform_age_split",
]
