"""DICOM objects of a patient's results, by highdicom: Segmentation, Parametric Map, Structured Report, a page.

PS3.3 A.51 (Segmentation), A.75 (Parametric Map), A.35.13 (Comprehensive 3D SR), A.8.5 (Secondary Capture); PS3.16
TID 1500 (Measurement Report).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.data.dicom.library import dicom_library

MAKER = "Interpretable imaging biomarkers"
NO_DEVICE = "Research use only: not a medical device, not for diagnosis or treatment."
SCHEME = "99IIB"  # of codes that no public scheme has
COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
    *((255, 255, 255), (148, 103, 189), (140, 86, 75), (127, 127, 127), (188, 189, 34)),
)


@dataclass(frozen=True)
class Maker:
    """Who made the results: the bundle's name, its version, and the checksum of the weights."""

    name: str
    version: str
    weights: str = ""

    def common(self, number: int) -> dict[str, Any]:
        """Arguments of every object of highdicom; ``number``: of the series."""
        hd = dicom_library("highdicom")
        return {
            "series_instance_uid": hd.UID(),
            "series_number": number,
            "sop_instance_uid": hd.UID(),
            "instance_number": 1,
            "manufacturer": MAKER,
        }

    def device(self) -> dict[str, str]:
        """Further ones of enhanced objects."""
        return {
            "manufacturer_model_name": self.name,
            "software_versions": self.software,
            "device_serial_number": self.weights[:16] or "none",
        }

    @property
    def software(self) -> str:
        """Version, and the beginning of the weights' checksum."""
        return f"{self.version} {self.weights[:12]}".strip()


def code(value: str, meaning: str) -> Any:
    """A code of this repository's own scheme: at most 16 and 64 letters."""
    return dicom_library("highdicom").sr.CodedConcept(value[:16], SCHEME, meaning[:64] or "none")


def segmentation(sources: Sequence[Any], regions: Mapping[str, np.ndarray], maker: Maker, number: int) -> Any:
    """Regions as a binary segmentation, a segment each, with names and colours.

    Args:
        sources: headers of the source images.
        regions: by name; they may overlap.
        maker: for the algorithm's identification.
        number: of the series.

    Shape:
        - regions: bool, ``[frames, rows, columns]`` each
    """
    hd, codes = dicom_library("highdicom"), dicom_library("pydicom.sr.codedict").codes
    algorithm = hd.AlgorithmIdentificationSequence(
        name=maker.name, version=maker.software, family=codes.cid7162.ArtificialIntelligence
    )
    described = [
        hd.seg.SegmentDescription(
            segment_number=k,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=code("BIOMARKER", "Imaging biomarker found by a network"),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=hd.UID(),
            tracking_id=name[:64],
            display_color=hd.color.CIELabColor.from_rgb(*COLOURS[(k - 1) % len(COLOURS)]),
        )
        for k, name in enumerate(regions, 1)
    ]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=np.stack([*regions.values()], axis=-1).astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        content_description="Biomarkers; not a medical device",
        series_description=f"{maker.name} biomarkers, research use only"[:64],
        **maker.common(number),
        **maker.device(),
    )


def parametric_map(
    sources: Sequence[Any], values: np.ndarray, maker: Maker, number: int, *, label: str, explained: str
) -> Any:
    """One map as a Parametric Map of floats.

    Args:
        sources: headers of the source images.
        values: the map.
        maker: who made it.
        number: of the series.
        label: of the values, at most 16 letters.
        explained: what they are.

    Shape:
        - values: float, ``[frames, rows, columns]``
    """
    hd, codes = dicom_library("highdicom"), dicom_library("pydicom.sr.codedict").codes
    values = np.ascontiguousarray(values, np.float32)
    low, high = float(values.min()), float(values.max())
    width = max(abs(low), abs(high), 1e-6)
    mapping = hd.pm.RealWorldValueMapping(
        lut_label=label[:16],
        lut_explanation=explained[:64],
        unit=codes.UCUM.NoUnits,
        value_range=(min(low, 0.0), max(high, width * 1e-3)),
        intercept=0,
        slope=1,
        quantity_definition=code("MAP", explained),
    )
    window = hd.VOILUTTransformation(
        window_center=0.0 if low < 0 else width / 2,
        window_width=2 * width if low < 0 else width,
        voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT,  # the others allow no width below 1
    )
    return _finished(
        hd.pm.ParametricMap(
            source_images=sources,
            pixel_array=values,
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[window],
            content_description="Not a medical device",
            series_description=f"{maker.name} {explained}"[:64],
            **maker.common(number),
            **maker.device(),
        )
    )


@dataclass(frozen=True)
class Finding:
    """A biomarker in the report: its measures, and its segment (number from 1) where it has one."""

    name: str
    area_mm2: float | None
    log_odds: float | None
    segment: int | None = None


def structured_report(
    sources: Sequence[Any],
    maker: Maker,
    number: int,
    *,
    positive: str,
    probability: float,
    notes: Mapping[str, str],
    findings: Sequence[Finding] = (),
    segments: Any = None,
) -> Any:
    """A Measurement Report (TID 1500): probability, notes, biomarkers with their area, and what it is not.

    Args:
        sources: headers of the source images.
        maker: who made it.
        number: of the series.
        positive: name of the class that the probability is of.
        probability: the prediction.
        notes: name to text, as the conformal set, or whether the patient is like those of the training.
        findings: biomarkers.
        segments: the segmentation that they refer to.
    """
    hd, codes = dicom_library("highdicom"), dicom_library("pydicom.sr.codedict").codes
    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name=maker.name, manufacturer_name=MAKER, model_name=maker.name
        ),
    )
    algorithm = hd.sr.AlgorithmIdentification(name=maker.name, version=maker.software)
    evaluations = [
        hd.sr.QualitativeEvaluation(name=code("USE", "Intended use"), value=code("RESEARCH", "Not a medical device")),
        *(
            hd.sr.QualitativeEvaluation(name=code(f"NOTE{k}", name), value=code(f"VALUE{k}", text))
            for k, (name, text) in enumerate(notes.items(), 1)
        ),
    ]
    middle = sources[len(sources) // 2]
    groups: list[Any] = [
        hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(), identifier="prediction"),
            algorithm_id=algorithm,
            source_images=[hd.sr.SourceImageForMeasurementGroup.from_source_image(middle)],
            measurements=[
                hd.sr.Measurement(
                    name=code("PROBABILITY", f"Probability of {positive}"),
                    value=round(float(probability), 6),
                    unit=codes.UCUM.NoUnits,
                )
            ],
            qualitative_evaluations=evaluations,
        )
    ]
    for finding in findings:
        measures = []
        if finding.area_mm2 is not None:
            measures.append((code("AREA", "Mean area per slice"), finding.area_mm2, codes.UCUM.SquareMillimeter))
        if finding.log_odds is not None:
            measures.append((code("LOGODDS", f"Log odds for {positive}"), finding.log_odds, codes.UCUM.NoUnits))
        options: dict[str, Any] = {
            "tracking_identifier": hd.sr.TrackingIdentifier(uid=hd.UID(), identifier=finding.name[:64]),
            "finding_type": code("BIOMARKER", finding.name),
            "algorithm_id": algorithm,
            "measurements": [hd.sr.Measurement(name=n, value=float(v), unit=unit) for n, v, unit in measures],
        }
        if segments is not None and finding.segment is not None:
            referenced = hd.sr.ReferencedSegment.from_segmentation(segments, finding.segment)
            groups.append(
                hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=referenced, **options)
            )
        else:
            source = hd.sr.SourceImageForMeasurementGroup.from_source_image(middle)
            groups.append(hd.sr.MeasurementsAndQualitativeEvaluations(source_images=[source], **options))
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=code("IMAGING", "Imaging"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(
        hd.sr.TextContentItem(
            name=codes.DCM.Comment, value=NO_DEVICE, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS
        )
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[*sources, *([segments] if segments is not None else [])],
        content=content[0],
        is_complete=True,
        is_verified=False,
        series_description=f"{maker.name} report, research use only"[:64],
        **maker.common(number),
    )


def page(source: Any, picture: np.ndarray, maker: Maker, number: int) -> Any:
    """A picture as one page of Secondary Capture, for viewers that show no structured report.

    Args:
        source: header of a source image.
        picture: the page.
        maker: who made it.
        number: of the series.

    Shape:
        - picture: uint8, ``[rows, columns, 3]``
    """
    hd = dicom_library("highdicom")
    made = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=source,
        pixel_array=np.ascontiguousarray(picture, np.uint8),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        **maker.common(number),
    )
    made.SeriesDescription = f"{maker.name} page, research use only"[:64]
    made.ConversionType = "WSD"
    made.BurnedInAnnotation = "YES"
    return _finished(made)


def _finished(made: Any) -> Any:
    """Laterality, which the General Series module of these objects asks for where no body part is known, as unknown."""
    if "Laterality" not in made:
        made.Laterality = ""
    return made
