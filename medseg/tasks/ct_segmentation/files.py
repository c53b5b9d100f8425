"""The torch-free half of CT segmentation: datasets and the plan that follows from them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from medseg.core.case import Case, CaseRecord, Dataset
from medseg.core.errors import CaseError, ConfigError, TrainingError
from medseg.core.findings import Finding
from medseg.core.labels import LabelSchema, Structure
from medseg.core.progress import Listener, Progress
from medseg.data.check.facts import UNKNOWN
from medseg.data.check.run import check_dataset
from medseg.data.fingerprint import fingerprint
from medseg.data.plan import Plan, make_plan
from medseg.data.splits import divide
from medseg.io.case import input_cases, read_case
from medseg.io.dataset import read_dataset
from medseg.losses.config import require_activation
from medseg.report.evaluation import Evaluation
from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
from medseg.tasks.ct_segmentation.network import chosen_features, stage_rule
from medseg.tasks.ct_segmentation.start import StartingPoint


class CtSegmentationFiles:
    """Reads datasets and plans from them."""

    def recognises(self, path: Path) -> bool:
        """Whether this is a native, nnU-Net raw or Decathlon dataset."""
        try:
            read_dataset(path)
        except ConfigError:
            return False
        return True

    def read_dataset(self, path: Path) -> Dataset:
        """A dataset's description; raises ConfigError."""
        return read_dataset(path)

    def read_images(self, folder: Path) -> Dataset:
        """The images in a folder as a dataset without labels; raises ConfigError where there is none."""
        records = input_cases([folder], num_channels=1)
        nothing = LabelSchema((Structure("anything", 1),))  # a schema is never empty; no case has a label
        return Dataset(folder.resolve().name, (UNKNOWN,), nothing, records, folder / "images")

    def check(
        self, dataset: Dataset, num_workers: int | None, allow: Collection[str], listener: Listener
    ) -> list[Finding]:
        """Find the defects of a dataset; see :func:`~medseg.data.check.run.check_dataset`."""
        return check_dataset(dataset, num_workers=num_workers, allow=allow, listener=listener)

    def draw_findings(self, path: Path, findings: Sequence[Finding], dataset: Dataset) -> None:
        """One HTML page with three planes through each place where something was found."""
        from medseg.report.thumbnails import write_findings_page

        write_findings_page(path, findings, dataset)

    def evaluate_bundle(
        self,
        bundle: Path,
        dataset: Dataset,
        out: Path,
        device: str,
        num_at_least: int,
        limit_s: float,
        listener: Listener,
    ) -> Evaluation | None:
        """The last word on a run; see :func:`~medseg.tasks.ct_segmentation.final.evaluate_bundle`."""
        from medseg.tasks.ct_segmentation import final

        return final.evaluate_bundle(bundle, dataset, out, device, num_at_least, limit_s, listener)

    def complete_config(self, config: CtSegmentationConfig) -> CtSegmentationConfig:
        """The config with the network of the bundle that it starts from; raises CheckpointError where that is unusable."""
        if config.start_from is None:
            return config
        return config.model_copy(update={"network": StartingPoint.open(config.start_from).description.network})

    def check_config(self, config: CtSegmentationConfig, dataset: Dataset) -> None:
        """Find out whether a config suits a dataset.

        Raises:
            ConfigError: Structures overlap and the loss lets a voxel be one thing only; there is no such fold; or the network
                that training starts from takes other images.
            TrainingError: There is nothing to train on, or a patient stands in two splits.
        """
        require_activation(config.loss, dataset.labels)
        divide(dataset, config.trainer.seed, config.splits.fold, config.splits.num_folds)
        if config.start_from is not None:
            StartingPoint.open(config.start_from).require_channels(dataset)

    def make_plan(self, config: CtSegmentationConfig, dataset: Dataset, listener: Listener) -> Plan:
        """Read the training cases once and decide what follows from them; what depends on the machine is as usual.

        Cases that cannot be read are told and left out. The plan of a bundle to start from is kept.

        Raises:
            TrainingError: None can be read, or there are none.
        """
        if config.start_from is not None:
            start = StartingPoint.open(config.start_from)
            return self.divide_plan(start.plan(config.trainer.batch_size, dataset.labels), config, dataset)
        division = divide(dataset, config.trainer.seed, config.splits.fold, config.splits.num_folds)
        read: list[str] = []
        failed: dict[str, CaseError] = {}

        def remembered() -> Iterator[Case]:
            for case in readable(division.training, dataset, "fingerprint", listener, failed):
                read.append(case.id)
                yield case

        measured = fingerprint(remembered(), dataset.labels)
        plan = make_plan(measured, dataset.channels, config.plan, stage_rule(config.network), config.trainer.batch_size)
        unseen = [name for name, count in measured.median_volume_ml.items() if count is None]
        reasons = [division.reason, *plan.reasons, _annotation_reason(measured.num_annotated, len(read))]
        if unseen:
            reasons.append(f"never labelled in a training case, so not learnt: {', '.join(unseen)}")
        return plan.model_copy(
            update={
                "training_cases": tuple(read),
                "validation_cases": tuple(record.id for record in division.validation),
                "fold": config.splits.fold,
                "features": chosen_features(config.network),
                "left_out": {case: error.message for case, error in failed.items()},
                "reasons": tuple(reasons),
            }
        )

    def divide_plan(self, plan: Plan, config: CtSegmentationConfig, dataset: Dataset) -> Plan:
        """A plan with the cases of the config's fold; cases that could not be read stay left out."""
        division = divide(dataset, config.trainer.seed, config.splits.fold, config.splits.num_folds)
        training, validation = (
            tuple(record.id for record in records if record.id not in plan.left_out)
            for records in (division.training, division.validation)
        )
        others = plan.reasons[1:] if plan.training_cases else plan.reasons  # the first is that of the old division
        changes = {
            "training_cases": training,
            "validation_cases": validation,
            "fold": config.splits.fold,
            "reasons": (division.reason, *others),
        }
        return plan.model_copy(update=changes)


files = CtSegmentationFiles()


def readable(
    records: Sequence[CaseRecord],
    dataset: Dataset,
    stage: str,
    listener: Listener,
    failed: dict[str, CaseError] | None = None,
) -> Iterator[Case]:
    """Read cases; one that cannot be read is told, and the others go on.

    Args:
        records: What to read.
        dataset: They belong to.
        stage: For the progress bar.
        listener: Hears of each case and each failure.
        failed: Collects the errors by case.

    Raises:
        TrainingError: Not one could be read.
    """
    num_read = 0
    listener(Progress(stage, 0, len(records)))
    for done, record in enumerate(records, start=1):
        message = ""
        try:
            case = read_case(record, dataset)
        except CaseError as error:
            message = f"{record.id} is left out: {error.message}"
            if failed is not None:
                failed[record.id] = error
        else:
            num_read += 1
            notes = case.image.notes + (case.label.notes if case.label is not None else ())
            message = "; ".join(f"{record.id}: {note.message}" for note in notes)
            yield case
        listener(Progress(stage, done, len(records), message=message))
    if records and not num_read:
        raise TrainingError(f"none of the {len(records)} cases could be read ({stage})", code="training.no_data")


def _annotation_reason(num_annotated: dict[str, int], num_cases: int) -> str:
    partly = {name: count for name, count in num_annotated.items() if count < num_cases}
    if not partly:
        return f"all structures are annotated in all {num_cases} cases"
    return "partly annotated: " + ", ".join(f"{name} in {count} of {num_cases}" for name, count in partly.items())
