"""A trial of a search as a task of SLURM's: its batch step asks the study for values, makes the run as any other
(deferred.py) and tells the study how it ended. A task that is queued again goes on with the same trial and run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.job import JobConfig
from launcher.sweeps import points, search
from launcher.sweeps.search import Outcome, Search, Study
from retrieval_train.config import ConfigError
from retrieval_train.rundir import RunDir

log = logging.getLogger("launcher.starts.supervise")  # whose log its user reads


def about(study: Study, number: int) -> dict[str, Any]:
    """What `stage.json` says of the trial."""
    return {"number": number, "digest": study.digest, "search": study.search.model_dump(mode="json")}


def config(folder: Path, about: Mapping[str, Any]) -> JobConfig:
    """Of the trial in this stage's folder, which it begins. Raises ValueError."""
    found = points.find(about["file"], about["overrides"], is_named=True)
    study, number = _study(folder, about), int(about["trial"]["number"])
    if found is None or found.search is None or found.study.digest != study.digest:
        raise ValueError(
            f"{about['file']}, or its base, has changed since the submit; submit again: that is a new search"
        )
    trial = study.begin(number)
    try:
        return found.config(found.trial(number, trial.values))
    except ConfigError:  # values that are no config together
        study.tell(number, Outcome("hopeless"))
        raise


def end(folder: Path, about: Mapping[str, Any], run: RunDir) -> None:
    """Tell the study how the trial ended, if it did."""
    study = _study(folder, about)
    try:
        if (found := search.outcome(run, study.search.metric)) is not None:
            told = study.tell(int(about["trial"]["number"]), found)
            log.info("trial %d: %s, %s %s", told.number, found.ending, study.search.metric, found.value)
    except (ValueError, OSError) as error:  # the run is over; the next submit of the search tells it
        log.warning("trial %d is not told: %s", about["trial"]["number"], error)


def _study(folder: Path, about: Mapping[str, Any]) -> Study:
    return Study(folder.parent, about["trial"]["digest"], Search.model_validate(about["trial"]["search"]))
